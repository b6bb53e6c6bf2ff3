//! Keying material of one TLS connection (RFC 8446, 7.5): the same 32 bytes at both ends, different for every
//! connection and label, so that a proof made over them is worth nothing on another connection.

use super::client::ClientStream;
use super::error::Error;
use super::server::ServerStream;

/// Either end of a TLS connection whose handshake is over.
pub trait Exporter {
    /// See [`exporter`].
    ///
    /// # Errors
    /// As there.
    fn export(&self, label: &[u8], out: &mut [u8; 32]) -> Result<(), Error>;
}

impl<T> Exporter for ClientStream<T> {
    fn export(&self, label: &[u8], out: &mut [u8; 32]) -> Result<(), Error> {
        let exported = self.get_ref().1.export_keying_material(out, label, None);
        exported.map(|_| ()).map_err(Error::from_rustls)
    }
}

impl<T> Exporter for ServerStream<T> {
    fn export(&self, label: &[u8], out: &mut [u8; 32]) -> Result<(), Error> {
        let exported = self.get_ref().1.export_keying_material(out, label, None);
        exported.map(|_| ()).map_err(Error::from_rustls)
    }
}

/// Fills `out` with keying material of the connection under `label`, without a context.
///
/// # Errors
/// [`Error`]: the handshake is not over, which no stream of [`super::connect`] or [`super::accept`] meets.
pub fn exporter(stream: &impl Exporter, label: &[u8], out: &mut [u8; 32]) -> Result<(), Error> {
    stream.export(label, out)
}
