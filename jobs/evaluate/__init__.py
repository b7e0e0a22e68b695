"""Measures of a run against judgements, and the page that shows them."""
