"""Victims: the networks that experiments attack, trained to bundles that the one scorer loads."""

from dicomguard.lab.victims.adversarial import Hardening
from dicomguard.lab.victims.grid import VICTIMS, Victim, victim
from dicomguard.lab.victims.training import REPORT, Options, check, report_of, train

__all__ = ["REPORT", "VICTIMS", "Hardening", "Options", "Victim", "check", "report_of", "train", "victim"]
