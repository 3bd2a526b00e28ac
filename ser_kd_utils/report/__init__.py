"""Tables, figures and what stands behind a number: everything that is made of records."""
