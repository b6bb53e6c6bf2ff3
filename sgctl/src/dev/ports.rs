//! Which ports a run uses. Everything but the destinations may be given as 0 and is found by the
//! system; destinations need a block, because the node says beforehand which ports it may open.

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};

use sg_model::{PortRange, Protocol};

use super::resource::ResourceArg;
use crate::failure::Failure;

/// Ports of a block: enough to go on with `sgctl destination create`.
const BLOCK: u16 = 100;
/// Blocks lie below the range from which the system hands out ports for outgoing connections.
const BLOCKS: std::ops::Range<u16> = 200..320;
/// Random blocks that are tried before giving up.
const TRIES: usize = 50;

/// The ports of one run; 0 lets the system choose.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ports {
    pub(super) grpc: u16,
    pub(super) http: u16,
    pub(super) tunnel: u16,
    pub(super) control_plane_admin: u16,
    pub(super) node_admin: u16,
    pub(super) client_admin: u16,
    /// What the node may open.
    pub(super) destinations: PortRange,
    /// One for each resource, in their order.
    pub(super) listen: Vec<u16>,
}

impl Ports {
    pub(super) fn choose(base: Option<u16>, resources: &[ResourceArg]) -> Result<Self, Failure> {
        check_asked(resources)?;
        let block = match base {
            Some(base) => range(base + 10, base + 9 + BLOCK)?,
            None => find_block()?,
        };
        let listen = assign(block, resources)?;
        // The node has one range; asked-for ports outside the block widen it. Nothing is opened that
        // is no destination, and all of these get their port here.
        let first = listen.iter().copied().fold(block.first(), u16::min);
        let last = listen.iter().copied().fold(block.last(), u16::max);
        let fixed = |offset: u16| base.map_or(0, |base| base + offset);
        Ok(Self {
            grpc: fixed(0),
            http: fixed(1),
            tunnel: fixed(2),
            control_plane_admin: fixed(3),
            node_admin: fixed(4),
            client_admin: fixed(5),
            destinations: range(first, last)?,
            listen,
        })
    }
}

/// A block in which every port is free now. Another process may take one before the node does; the
/// destination then says so and the node tries again.
fn find_block() -> Result<PortRange, Failure> {
    for _ in 0..TRIES {
        let random = u16::from_be_bytes(sg_runtime::crypto::random_bytes());
        let first = (BLOCKS.start + random % (BLOCKS.end - BLOCKS.start)) * BLOCK;
        if (first..first + BLOCK).all(is_free) {
            return range(first, first + BLOCK - 1);
        }
    }
    Err(Failure::new(
        tonic::Code::ResourceExhausted,
        "NO_FREE_PORTS",
        format!("no {BLOCK} free ports in a row were found on 127.0.0.1"),
    )
    .hint("sgctl dev --port-base N, with a number of your choice"))
}

/// The listen port of each resource: the one asked for, else the next free one of the block.
fn assign(block: PortRange, resources: &[ResourceArg]) -> Result<Vec<u16>, Failure> {
    let asked: Vec<u16> = resources.iter().filter_map(|r| r.listen_port).collect();
    let mut free =
        (block.first()..=block.last()).filter(|port| !asked.contains(port) && is_free(*port));
    let ports: Option<Vec<u16>> = resources
        .iter()
        .map(|r| r.listen_port.or_else(|| free.next()))
        .collect();
    ports.ok_or_else(|| {
        Failure::usage(format!(
            "there are more resources than free ports in {block}"
        ))
    })
}

/// Refuses ports that were asked for and cannot be had: the node would try for as long as the start may take.
fn check_asked(resources: &[ResourceArg]) -> Result<(), Failure> {
    let mut asked = BTreeSet::new();
    for resource in resources {
        let Some(port) = resource.listen_port else {
            continue;
        };
        let shown = format!("{}:{port}", Ipv4Addr::LOCALHOST);
        if !asked.insert(port) {
            return Err(Failure::usage(format!(
                "{shown} is asked for twice; choose another =LISTEN_PORT"
            )));
        }
        bind(resource.protocol, port).map_err(|error| {
            let problem = match error.kind() {
                io::ErrorKind::AddrInUse => "is in use",
                _ => "cannot be used",
            };
            Failure::local(
                format!("{shown} {problem}; choose another =LISTEN_PORT"),
                &error,
            )
        })?;
    }
    Ok(())
}

/// Takes the port as the node will, and gives it back.
fn bind(protocol: Protocol, port: u16) -> io::Result<()> {
    let address = (Ipv4Addr::LOCALHOST, port);
    if protocol == Protocol::Udp {
        UdpSocket::bind(address).map(drop)
    } else {
        TcpListener::bind(address).map(drop)
    }
}

fn is_free(port: u16) -> bool {
    let address = (Ipv4Addr::LOCALHOST, port);
    TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok()
}

fn range(first: u16, last: u16) -> Result<PortRange, Failure> {
    PortRange::new(first, last).map_err(Failure::from)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn resources(texts: &[&str]) -> Vec<ResourceArg> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_base_fixes_every_port() {
        let ports = Ports::choose(Some(24_000), &resources(&["a:1", "b:2"])).unwrap();
        assert_eq!(
            (ports.grpc, ports.http, ports.tunnel, ports.client_admin),
            (24_000, 24_001, 24_002, 24_005)
        );
        assert_eq!(ports.destinations, PortRange::new(24_010, 24_109).unwrap());
        assert!(
            ports
                .listen
                .iter()
                .all(|port| ports.destinations.contains(*port))
        );
    }

    #[test]
    fn asked_for_ports_widen_the_range_and_are_given_once() {
        let ports = Ports::choose(None, &resources(&["a:1=5433", "b:2", "c:3"])).unwrap();
        assert_eq!(ports.listen.first(), Some(&5433));
        assert!(ports.destinations.contains(5433));
        let mut unique = ports.listen;
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), 3);
    }

    #[test]
    fn a_port_that_cannot_be_had_is_refused_at_once() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let refused = Ports::choose(None, &resources(&[&format!("a:1={port}")])).unwrap_err();
        let text = refused.text();
        let wanted =
            format!("error: 127.0.0.1:{port} is in use; choose another =LISTEN_PORT (LOCAL)\n");
        assert!(text.starts_with(&wanted), "{text}");
        assert_eq!(
            check_asked(&resources(&["a:1", "b:1"]))
                .err()
                .map(|f| f.text()),
            None
        );

        drop(taken);
        let twice = [format!("a:1={port}"), format!("udp://b:2={port}")];
        let twice = twice.each_ref().map(String::as_str);
        let refused = Ports::choose(None, &resources(&twice)).unwrap_err();
        assert_eq!(
            refused.text(),
            format!(
                "error: 127.0.0.1:{port} is asked for twice; choose another =LISTEN_PORT (USAGE)\n"
            )
        );
    }

    #[test]
    fn a_taken_port_is_not_given() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let block = PortRange::new(port, port.saturating_add(5)).unwrap();
        assert_ne!(assign(block, &resources(&["a:1"])).unwrap(), [port]);
    }
}
