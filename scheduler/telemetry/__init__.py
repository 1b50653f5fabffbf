"""1 IN: from a GPU's reading to a message, and from a message to a typed sample.

Takes readings (device) and MQTT payloads. Gives `Inventory` and `Sample`. Never judges a node.
"""
