//! The client of Secure Gateway: it runs beside the resources, opens one tunnel to every node of its
//! gateways' group, and connects the streams that come through to the resources that the access
//! control lists allow. It listens to nobody but people at its own machine.
//!
//! What it is not: it never asks for configuration. All that it needs beside its command line
//! comes over the tunnels, and its own decision about what may be reached is final.
//!
//! | where to start | for |
//! |---|---|
//! | [`app`] | what runs, and how it ends |
//! | [`supervisor`] | which tunnels exist: a pure machine |
//! | [`gateway`] | the shell around it: one task per gateway |
//! | [`session`] | one tunnel, from the dial to its end |
//! | [`stream`] | one stream: the decision, the dial, the relay |
//! | [`acl`] | the decision |
//! | [`trust`] | whose nodes are believed |
//! | [`token`] | what is shown to nodes, and read again when it is refused |
//! | [`certificate`] | what is shown instead of the token |
//! | [`console`], [`edits`] | what a person here sees and changes |
//! | [`options`] | the command line |

pub mod acl;
pub mod app;
pub mod certificate;
pub mod cloud;
pub mod console;
pub mod dial_gate;
pub mod edits;
pub mod gateway;
pub mod identity;
pub mod metrics;
pub mod options;
pub mod proxy;
pub mod session;
pub mod stream;
pub mod supervisor;
pub mod token;
pub mod trust;
