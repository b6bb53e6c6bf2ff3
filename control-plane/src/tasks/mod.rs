//! What a control plane does by itself: says that it lives, renews its certificate, forgets old
//! history. Each task runs for ever, on a period, and carries nothing over that it cannot lose.

pub mod certificate;
pub mod housekeeping;
pub mod live;
