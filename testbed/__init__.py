"""The testbed: device, MEC server, link, meters, measurements, cost models, policies.

What the device needs to decide lives here, so that training and the device share it.
Nothing in this package imports torch, gymnasium or stable-baselines3.
"""
