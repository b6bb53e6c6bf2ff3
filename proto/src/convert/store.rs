//! Stored values (`securegateway.store.v1`) and the domain.
