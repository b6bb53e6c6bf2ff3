//! The public API (`securegateway.v1`) and the domain.
