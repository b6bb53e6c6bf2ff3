//! haproxy, as a pair with TLS between, or as one plain hop.

use anyhow::Result;

use super::{Place, Running};

const HEAD: &str = "global
  maxconn 9900
defaults
  mode tcp
  timeout connect 10s
  timeout client 600s
  timeout server 600s
listen tunnel
";

/// plain, TLS, plain; a TLS connection for each user.
pub(super) fn start_pair(place: &mut Place<'_>) -> Result<Running> {
    let (address, between) = (place.address(), place.address());
    let server = format!(
        "{HEAD}  bind {between} ssl crt {}\n  server next {}\n",
        place.pki.both().display(),
        place.resource
    );
    let client = format!(
        "{HEAD}  bind {address}\n  server next {between} ssl verify required ca-file {} \
         sni str(localhost) verifyhost localhost\n",
        place.pki.authority().display()
    );
    let mut processes = Vec::new();
    for (name, text) in [("server", server), ("client", client)] {
        processes.push((name, start(place, name, &text)?));
    }
    Ok(Running { address, processes })
}

/// One process, nothing encrypted.
pub(super) fn start_hop(place: &mut Place<'_>) -> Result<Running> {
    let address = place.address();
    let text = format!("{HEAD}  bind {address}\n  server next {}\n", place.resource);
    let process = start(place, "hop", &text)?;
    Ok(Running {
        address,
        processes: vec![("hop", process)],
    })
}

fn start(place: &Place<'_>, name: &str, text: &str) -> Result<sg_tests::Process> {
    let file = place.write(&format!("{name}.cfg"), text)?;
    place
        .launch(name, "haproxy")?
        .arg("-db")
        .option("-f", file)
        .start()
}
