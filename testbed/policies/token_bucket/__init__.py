"""Offloading under a token bucket: Chakrabarti et al. (SEC 2021, MDP) and Qiu et al. (EMSOFT 2022, DQN), analytic."""
