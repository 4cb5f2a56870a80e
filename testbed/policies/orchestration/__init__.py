"""Where to run and which model, for all devices at once: Shahhosseini et al. (arXiv 2202.10541, ACM TECS 2022)."""
