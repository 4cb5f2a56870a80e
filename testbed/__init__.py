"""Network emulation testbed for inference between device, edge and cloud."""

__version__ = "0.1.0"
