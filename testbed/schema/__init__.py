"""Models of the files that people write: topology and scenario, with units and errors that name file, key and remedy."""

from testbed.schema.files import load_scenario, load_topology
from testbed.schema.scenario import Scenario
from testbed.schema.topology import Topology

__all__ = ["Scenario", "Topology", "load_scenario", "load_topology"]
