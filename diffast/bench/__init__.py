"""`diffast bench`: what is measured, against what, and the report that is made of it."""
