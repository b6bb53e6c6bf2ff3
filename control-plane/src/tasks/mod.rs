//! What a control plane does by itself: says that it lives, renews its certificate, forgets old
//! history, brings secrets under the newest key. Each task runs for ever, on a period, and carries nothing over that it cannot lose.

pub(crate) mod certificate;
pub(crate) mod destination_certificates;
pub(crate) mod housekeeping;
pub(crate) mod live;
pub(crate) mod reseal;
