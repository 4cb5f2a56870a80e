"""Device, edge and cloud tiers as a topology of Mininet's own `mn` command: only Mininet is needed, no testbed.

    sudo mn --custom topologies/tiered.py --topo tiered,4,2 --test pingall
    sudo mn --custom topologies/tiered.py --topo tiered,devices=4,edges=2,access=20,wan=100 --link tc --test iperf

A switch stands for each edge site and one for the cloud; every edge and the cloud has a server (a host) beside its
switch. Device i is attached to edge (i - 1) mod edges + 1, as in the testbed's topology files. Host and switch names:
`device1`..., `edge1`..., `cloud1`; `s1`... for the edges' switches, the last one for the cloud's.
"""

from mininet.topo import Topo


class TieredTopo(Topo):
    """A tree: cloud, edges, devices.

    Parameters
    ----------
    devices, edges: how many (at least one each).
    access, wan: Mbit/s of the links device-edge and edge-cloud; they need `mn --link tc`. Not shaped when absent.
    access_delay, wan_delay: one-way delay such as "10ms"; they need `mn --link tc` and a kernel with netem.
    """

    def build(self, devices=2, edges=1, access=None, wan=None, access_delay=None, wan_delay=None):
        """Called by Mininet with what follows the name on the command line."""
        if devices < 1 or edges < 1:
            raise ValueError("tiered needs at least one device and one edge, for example --topo tiered,4,2")
        cloud_switch = f"s{edges + 1}"
        switches = [self.addSwitch(f"s{number}") for number in range(1, edges + 1)]
        self.addSwitch(cloud_switch)
        self.addLink(self.addHost("cloud1"), cloud_switch)
        for number, switch in enumerate(switches, start=1):
            self.addLink(self.addHost(f"edge{number}"), switch)
            self.addLink(switch, cloud_switch, **link_options(wan, wan_delay))
        for number in range(1, devices + 1):
            device = self.addHost(f"device{number}")
            self.addLink(device, switches[(number - 1) % edges], **link_options(access, access_delay))


def link_options(rate_mbit, delay):
    """Keyword arguments of Mininet's TCLink; none where nothing was asked, so that plain links work, too."""
    given = {"bw": rate_mbit, "delay": delay}
    return {key: value for key, value in given.items() if value is not None}


topos = {"tiered": TieredTopo}
