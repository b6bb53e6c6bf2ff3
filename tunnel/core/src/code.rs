//! The numbers that travel in RESET and GOAWAY frames, and the one word each has in logs and metrics.
//!
//! Not here: when a code is sent (`connection`), or what a user of a destination sees (the relay decides).
//! A code that this version does not know is kept as a number and treated like [`CANCEL`].

/// The application or task that owned the stream gave it up.
pub const CANCEL: u32 = 0x100;
/// The relayed connection was reset by the program at the far end of it.
pub const PEER_RESET: u32 = 0x101;
/// The resource refused the connection.
pub const REFUSED: u32 = 0x102;
/// No route to the resource's host or network.
pub const UNREACHABLE: u32 = 0x103;
/// The resource did not answer the connection attempt in time.
pub const CONNECT_TIMEOUT: u32 = 0x104;
/// The resource's host name has no address.
pub const NAME_UNKNOWN: u32 = 0x105;
/// The access list of the accepting side does not allow the resource.
pub const ACL_DENIED: u32 = 0x106;
/// The accepting side does not know the destination.
pub const NO_DESTINATION: u32 = 0x107;
/// The destination is disabled.
pub const DISABLED: u32 = 0x108;
/// A limit of the accepting side is reached.
pub const LIMIT: u32 = 0x109;
/// The stream carried nothing for its idle time.
pub const IDLE_TIMEOUT: u32 = 0x10a;
/// TLS at one of the ends failed in a way that has no code of its own below.
pub const TLS_FAILED: u32 = 0x10b;
/// The tunnel was drained and the deadline of the drain has passed.
pub const DRAINED: u32 = 0x10c;
/// What was received on a compressed stream cannot be decompressed.
pub const DECOMPRESS: u32 = 0x10d;
/// Nothing was done for this OPEN; it is safe to try another tunnel.
pub const REFUSED_RETRY: u32 = 0x10f;
/// The tunnel that carried the stream is gone. Never on the wire.
pub const TUNNEL_LOST: u32 = 0x110;
/// A changed policy no longer permits the stream.
pub const POLICY_CHANGED: u32 = 0x111;
/// The other end's certificate is for other names.
pub const TLS_NAME_MISMATCH: u32 = 0x120;
/// Nobody who is trusted has issued the other end's certificate.
pub const TLS_UNKNOWN_ISSUER: u32 = 0x121;
/// The other end's certificate has expired.
pub const TLS_EXPIRED: u32 = 0x122;
/// The other end's certificate is not valid yet.
pub const TLS_NOT_YET_VALID: u32 = 0x123;
/// The other end ended the handshake with an alert.
pub const TLS_HANDSHAKE_REFUSED: u32 = 0x124;
/// The other end answered without TLS.
pub const TLS_PLAIN_TEXT: u32 = 0x125;
/// The other end did not finish the handshake in time.
pub const TLS_TIMEOUT: u32 = 0x126;
/// The other end closed the connection during the handshake.
pub const TLS_CLOSED: u32 = 0x127;
/// The other end's certificate cannot be used for another reason.
pub const TLS_BAD_CERTIFICATE: u32 = 0x128;
/// The SOCKS proxy before the resource cannot be reached.
pub const SOCKS_UNREACHABLE: u32 = 0x130;
/// The SOCKS proxy before the resource does not answer.
pub const SOCKS_TIMEOUT: u32 = 0x131;
/// The SOCKS proxy before the resource does not let this user through.
pub const SOCKS_AUTH: u32 = 0x132;
/// The SOCKS proxy before the resource refused the connection.
pub const SOCKS_REFUSED: u32 = 0x133;
/// What should be a SOCKS proxy before the resource does not speak like one.
pub const SOCKS_PROTOCOL: u32 = 0x134;
/// The operator of the accepting node lets no cloud destination reach this resource from there.
pub const CLOUD_DENIED: u32 = 0x112;
/// The resource is a port of the accepting side itself.
pub const LOOP: u32 = 0x113;
/// A fault of the accepting side itself.
pub const INTERNAL: u32 = 0x1ff;

/// Codes of GOAWAY: why a tunnel ends or drains.
pub mod close {
    /// The tunnel is not needed any more.
    pub const NONE: u32 = 0;
    /// A frame that this version forbids.
    pub const PROTOCOL_ERROR: u32 = 1;
    /// A frame longer (or shorter) than its type allows.
    pub const FRAME_SIZE: u32 = 2;
    /// DATA beyond the credit of its stream.
    pub const FLOW_CONTROL: u32 = 3;
    /// A stream id that its sender may not use.
    pub const STREAM_ID: u32 = 4;
    /// SETTINGS missing, late, repeated or malformed.
    pub const SETTINGS: u32 = 5;
    /// A rate limit on the peer's useless work is exceeded.
    pub const TOO_MUCH: u32 = 6;
    /// Nothing was received for too long.
    pub const IDLE: u32 = 7;
    /// Drain: no new streams, existing ones go on. The only code that does not close the tunnel.
    pub const DRAIN: u32 = 8;
    /// A newer connection of the same peer takes over.
    pub const REPLACED: u32 = 9;
    /// The peer's authorisation ended.
    pub const AUTH_REVOKED: u32 = 10;
    /// A fault of the closing side itself.
    pub const INTERNAL: u32 = 11;
    /// No common version.
    pub const VERSION: u32 = 12;

    /// The word for a close code in logs and metrics.
    #[must_use]
    pub fn word(code: u32) -> &'static str {
        match code {
            NONE => "none",
            PROTOCOL_ERROR => "protocol-error",
            FRAME_SIZE => "frame-size",
            FLOW_CONTROL => "flow-control",
            STREAM_ID => "stream-id",
            SETTINGS => "settings",
            TOO_MUCH => "too-much",
            IDLE => "idle",
            DRAIN => "drain",
            REPLACED => "replaced",
            AUTH_REVOKED => "auth-revoked",
            INTERNAL => "internal",
            VERSION => "version",
            _ => "unknown",
        }
    }
}

/// The word for a stream's reset code, as used in metric labels and access lines.
#[must_use]
pub fn word(code: u32) -> &'static str {
    match code {
        PEER_RESET => "peer-reset",
        REFUSED => "refused",
        UNREACHABLE => "unreachable",
        CONNECT_TIMEOUT => "connect-timeout",
        NAME_UNKNOWN => "name-unknown",
        ACL_DENIED => "acl-denied",
        NO_DESTINATION => "no-destination",
        DISABLED => "disabled",
        LIMIT => "limit",
        IDLE_TIMEOUT => "idle-timeout",
        TLS_FAILED => "tls-failed",
        DRAINED => "drained",
        DECOMPRESS => "decompress",
        REFUSED_RETRY => "refused-retry",
        TUNNEL_LOST => "tunnel-lost",
        POLICY_CHANGED => "policy-changed",
        TLS_NAME_MISMATCH => "tls-name-mismatch",
        TLS_UNKNOWN_ISSUER => "tls-unknown-issuer",
        TLS_EXPIRED => "tls-expired",
        TLS_NOT_YET_VALID => "tls-not-yet-valid",
        TLS_HANDSHAKE_REFUSED => "tls-handshake-refused",
        TLS_PLAIN_TEXT => "tls-plain-text",
        TLS_TIMEOUT => "tls-timeout",
        TLS_CLOSED => "tls-closed",
        TLS_BAD_CERTIFICATE => "tls-bad-certificate",
        SOCKS_UNREACHABLE => "socks-unreachable",
        SOCKS_TIMEOUT => "socks-timeout",
        SOCKS_AUTH => "socks-auth",
        SOCKS_REFUSED => "socks-refused",
        SOCKS_PROTOCOL => "socks-protocol",
        CLOUD_DENIED => "cloud-denied",
        LOOP => "loop",
        INTERNAL => "internal",
        _ => "cancelled",
    }
}

/// Whether an OPEN that was refused with `code` may succeed on another tunnel of the same gateway.
#[must_use]
pub fn retry_elsewhere(code: u32) -> bool {
    matches!(code, REFUSED_RETRY | LIMIT | TUNNEL_LOST | CLOUD_DENIED)
}
