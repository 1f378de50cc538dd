"""Making the network: training, calibration, export. Needs torch."""
