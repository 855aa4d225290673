"""Statistics of predictions against labels: plain numbers in, plain numbers out."""
