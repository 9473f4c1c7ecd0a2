"""At which ratio a prompt is blended, or why it is not: calibration, costs, gate, live guard."""
