//! The only place where wire types become domain values and back.
//!
//! From the wire a value is parsed (`TryFrom`, failing with a [`sg_model::Invalid`] that names the
//! field); to the wire it is only written down (`From`).

mod acl;
pub mod acl_edit;
pub mod api;
pub mod ends;
pub mod node;
pub mod store;
mod time;
pub mod tokens;
mod tunnel;

pub use time::{duration_from_wire, duration_to_wire, timestamp_from_wire, timestamp_to_wire};
