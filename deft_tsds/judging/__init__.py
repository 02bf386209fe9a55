"""Human evaluation: blind pages for raters, and what their answers show."""
