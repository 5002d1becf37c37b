"""Attacks by name against the deployed code, each with a control that shows it working when its defence is off."""
