"""Victims: the networks that experiments attack, trained to bundles that the one scorer loads."""

from dicomguard.lab.victims.adversarial import Hardening
from dicomguard.lab.victims.grid import VICTIMS, Victim, grid, victim
from dicomguard.lab.victims.train import REPORT, Options, report_of, train

__all__ = ["REPORT", "VICTIMS", "Hardening", "Options", "Victim", "grid", "report_of", "train", "victim"]
