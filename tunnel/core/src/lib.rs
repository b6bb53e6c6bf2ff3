//! The tunnel protocol as a machine without IO: many streams over one ordered, reliable connection.
//!
//! Bytes and the time go in; bytes, events and the next timeout come out. There is no clock, no
//! socket, no task, no randomness and no TLS here, so every behaviour can be replayed in a test.
//! `sg-tunnel-io` runs it over a real connection; what a stream or a message *means* is decided
//! above both.
//!
//! `docs/tunnel-protocol.md` is the normative description; this is the picture:
//!
//! ```text
//!   client                                   node
//!   SETTINGS, PING ----------------------->
//!   <----------------------- SETTINGS, PING
//!   PONG --------------------------------->
//!   <--------------- OPEN 1 (credit, metadata)
//!   OPEN_OK 1 (credit) ------------------->
//!   <------------------------------- DATA 1
//!   DATA 1, WINDOW 1 --------------------->
//!   <--------------------------- DATA 1 FIN
//!   DATA 1 FIN --------------------------->      the stream is gone on both sides
//!   <------------------------ GOAWAY (drain)     no new streams; existing ones go on
//! ```
//!
//! Start reading at [`Connection`]; the frames are in [`frame`], the life of a stream in `stream`.
//!
//! Why not a ready-made multiplexer: none of those surveyed has all of these. A stalled stream never
//! slows another (credit per stream, none per connection, a reader that never waits); a stream that
//! nobody answers never blocks another open; RESET has a code, overtakes queued data, and is never
//! taken for an end of file; memory is bounded by what was promised; small streams go before bulk.

mod batch;
mod budget;
mod closed;
mod config;
mod connection;
mod datagram;
mod error;
mod event;
mod keepalive;
mod limits;
mod log;
mod queue;
mod report;
mod scheduler;
mod send_queues;
mod stream;
mod table;
mod window;

pub mod code;
pub mod frame;
pub mod record;

pub use batch::Batch;
pub use budget::Budget;
pub use closed::{CloseReason, Closed};
pub use config::{Config, DatagramLimits, Rate, Rates};
pub use connection::{Connection, Side, Stats};
pub use error::{ControlRefusal, OpenRefusal, StreamEnd, Violation};
pub use event::{Event, Incoming, OpenState, Peek, Read};
pub use limits::Limit;
pub use report::{Datagrams, Report, StreamReport, Waiting};
pub use stream::Key;
