"""The GPU seam: protocol in SI units, one NVML adapter, one simulated adapter.

Takes nothing but the driver. Gives `DeviceInfo` and `Reading`. Never publishes, never decides.
"""
