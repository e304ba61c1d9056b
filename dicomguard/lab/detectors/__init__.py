"""Every detector of both papers, and ours, behind one protocol (`sight.Detector`); thresholds are set in `judge`."""
