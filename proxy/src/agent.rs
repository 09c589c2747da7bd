//! Wires the parts together: reads configuration, enrols pods, serves, drains.
