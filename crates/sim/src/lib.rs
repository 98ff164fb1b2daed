//! Simulator, crash replayer and workloads.
