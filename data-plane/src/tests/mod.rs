//! A whole node but for its control plane: real ports, a real tunnel listener, and clients made of the parts
//! that the real one is made of. The tests hand it configurations.

mod balancers;
mod control;
mod credentials;
mod edits;
mod policy;
mod refusals;
mod resume;
pub(crate) mod rig;
mod streams;
mod threats;
