"""Criteria: functions that give every unit of every group a saliency."""
