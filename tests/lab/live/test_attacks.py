from dicomguard.attacks.attacked import Attacked
from dicomguard.lab.live.attacks import available, folder_of, settings_of


def test_every_attack_has_a_folder_of_its_own():
    folders = {folder_of(name) for name in available()}
    assert len(folders) == len(available()) > 20
    assert folder_of("PGD 0.004 (Joel et al. 2023)") == "pgd-0.004-joel-et-al.-2023"


def test_settings_are_found_wherever_they_were_bound():
    suite = available()
    assert settings_of(suite["PGD 0.004"])["eps"] == 0.004
    assert settings_of(suite["PGD 0.004 (Joel et al. 2023)"])["restarts"] == 5
    assert settings_of(suite["Square 0.008"])["eps"] == 0.008
    assert settings_of(suite["DeepFool kappa 0.5"])["kappa"] == 0.5
    assert settings_of(suite["early-stopped FGSM"]) == {}
    assert settings_of(Attacked) == {}
