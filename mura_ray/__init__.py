"""Detects abnormal musculoskeletal radiographs: trained, searched and served on Ray.

Research software, not a medical device.
"""
