//! Options of the TCP socket beneath a tunnel.

use std::io;

use tokio::net::TcpStream;

/// Sets what a tunnel's socket needs.
pub fn tune(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)
}
