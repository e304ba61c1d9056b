"""The attacks that only the lab needs: minimal-norm, black-box, transferred, and those that know the detector.

Those that the node itself needs are in `dicomguard.attacks`, the attack on model and certified guard in
`dicomguard.attacks.joint`. All are judged on what is left of them in a file (`attacks.forge`, `attacks.rounded`).
"""
