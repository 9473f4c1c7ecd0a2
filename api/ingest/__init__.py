"""Documents' way in: uploads, jobs, and what becomes of them."""
