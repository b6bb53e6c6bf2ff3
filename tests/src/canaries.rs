//! What must be seen nowhere, and where it is looked for: all that an installation has written or answered.
//!
//! Secrets are what tests name ([`crate::Site::secret_file`]) and what processes keep in key files. They are searched in logs, in
//! what `sgctl` said, in the pages of every process, in its command line and environment (but for what the test itself
//! has put there), and in the files of stores. [`Evidence`] collects what goes away before the end.

use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use memchr::memmem;

/// Longest wait for a page; whoever is stopped or gone has none.
const PAGE_LIMIT: Duration = Duration::from_millis(500);
/// Pages of a process, at its admin port.
const PAGES: [&str; 4] = ["/livez", "/readyz", "/metrics", "/debug/tunnels"];
/// How much of what stands before a secret is shown, to find who has said it.
const CONTEXT: usize = 80;
/// Folder of what was collected.
const FOLDER: &str = "evidence";

/// A process of the product that runs.
#[derive(Debug, Clone)]
pub struct Shown {
    /// Says which it is.
    pub name: String,
    /// Its id.
    pub pid: u32,
    /// Its HTTP ports.
    pub ports: Vec<SocketAddr>,
    /// What the test has given it: arguments, and values of variables.
    pub given: Vec<OsString>,
}

/// What an installation has shown. Clones collect together.
#[derive(Debug, Clone)]
pub struct Evidence {
    folder: PathBuf,
    running: Arc<Mutex<Vec<Shown>>>,
}

impl Evidence {
    /// Collects in a folder inside of this one.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new(folder: &Path) -> Result<Self> {
        let folder = folder.join(FOLDER);
        std::fs::create_dir_all(&folder).context("folder of the evidence")?;
        Ok(Self {
            folder,
            running: Arc::default(),
        })
    }

    /// From now on this process is looked at: when it is left, and at the end.
    pub fn began(&self, shown: Shown) {
        self.running().push(shown);
    }

    /// This process is gone.
    pub fn ended(&self, pid: u32) {
        self.running().retain(|shown| shown.pid != pid);
    }

    /// Looks at a process that is about to go.
    pub fn last_look(&self, pid: u32) {
        let found = self
            .running()
            .iter()
            .find(|shown| shown.pid == pid)
            .cloned();
        if let Some(shown) = found {
            self.look(&shown);
            self.ended(pid);
        }
    }

    /// Keeps something that was said.
    pub fn note(&self, who: &str, text: &[u8]) {
        if text.is_empty() {
            return;
        }
        let path = self.folder.join(format!("{who}.seen"));
        let file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path);
        // A full disk shows elsewhere.
        if let Ok(mut file) = file {
            drop(file.write_all(text));
        }
    }

    fn look_at_all(&self) {
        for shown in self.running().clone() {
            self.look(&shown);
        }
    }

    fn look(&self, shown: &Shown) {
        for kind in ["cmdline", "environ"] {
            let Ok(bytes) = std::fs::read(format!("/proc/{}/{kind}", shown.pid)) else {
                continue;
            };
            // Variables and arguments, without what the test has given.
            let own = bytes.split(|byte| *byte == 0).filter(|part| {
                let value = match (kind, memchr::memchr(b'=', part)) {
                    ("environ", Some(at)) => part.get(at + 1..).unwrap_or_default(),
                    _ => part,
                };
                !shown
                    .given
                    .iter()
                    .any(|given| given.as_encoded_bytes() == value)
            });
            let text: Vec<u8> = own.flat_map(|part| [part, b"\n"].concat()).collect();
            self.note(&format!("{}.{kind}", shown.name), &text);
        }
        for port in &shown.ports {
            for page in PAGES.iter().chain(&["/"]) {
                if let Some(answer) = fetch(*port, page) {
                    self.note(&format!("{}.pages", shown.name), &answer);
                }
            }
        }
    }

    fn running(&self) -> MutexGuard<'_, Vec<Shown>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The whole answer to a GET, without a runtime: a test may be at its end.
fn fetch(address: SocketAddr, page: &str) -> Option<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&address, PAGE_LIMIT).ok()?;
    stream.set_read_timeout(Some(PAGE_LIMIT)).ok()?;
    stream.set_write_timeout(Some(PAGE_LIMIT)).ok()?;
    let request = format!("GET {page} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = Vec::new();
    // What came before it failed counts too.
    drop(stream.read_to_end(&mut answer));
    Some(answer)
}

/// Searches everything under the folder of an installation.
///
/// # Errors
/// A secret is there; the error says where and not which. Or a file cannot be read.
pub(crate) fn search(folder: &Path, secrets: &[String], evidence: &Evidence) -> Result<()> {
    evidence.look_at_all();
    let finders: Vec<_> = secrets
        .iter()
        .filter(|secret| !secret.is_empty())
        .map(|secret| memmem::Finder::new(secret.as_bytes()))
        .collect();
    let mut files = Vec::new();
    collect(folder, &mut files)?;
    let mut found = Vec::new();
    for path in files {
        let Ok(bytes) = std::fs::read(&path) else {
            // Gone since, as the file that another one replaces.
            continue;
        };
        if let Some(at) = finders.iter().find_map(|finder| finder.find(&bytes)) {
            let before = bytes
                .get(at.saturating_sub(CONTEXT)..at)
                .unwrap_or_default();
            let before = String::from_utf8_lossy(before);
            found.push(format!("{}, behind {:?}", path.display(), before));
        }
    }
    if found.is_empty() {
        return Ok(());
    }
    bail!("a secret in {}", found.join("; "))
}

/// Logs, evidence, and what stores and nodes keep sealed. The files that exist to hold a secret are left out.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder).context("folder")? {
        let entry = entry.context("folder")?;
        let path = entry.path();
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        let searched = path.extension().is_some_and(|kind| {
            ["log", "seen", "redb", "sealed", "unusable", "ready"]
                .contains(&&*kind.to_string_lossy())
        });
        if kind.is_dir() {
            collect(&path, files)?;
        } else if kind.is_file() && searched {
            files.push(path);
        }
    }
    Ok(())
}

/// Adds what must be kept secret of every key file under a folder: keys in hexadecimal, and the lines
/// of private keys.
///
/// # Errors
/// A folder cannot be read.
pub fn of_key_files(folder: &Path, secrets: &mut Vec<String>) -> Result<()> {
    /// Longest key file.
    const LONGEST: u64 = 16 * 1024;
    for entry in std::fs::read_dir(folder).context("folder")? {
        let entry = entry.context("folder")?;
        let kind = entry.file_type().context("kind of file")?;
        if kind.is_dir() {
            if entry.file_name() != FOLDER {
                of_key_files(&entry.path(), secrets)?;
            }
            continue;
        }
        let Ok(size) = entry.metadata().map(|metadata| metadata.len()) else {
            continue;
        };
        let is_log = entry.path().extension().is_some_and(|kind| kind == "log");
        if !kind.is_file() || size > LONGEST || is_log {
            continue;
        }
        let Ok(text) = std::fs::read_to_string(entry.path()) else {
            continue;
        };
        let is_key = entry.path().extension().is_some_and(|kind| kind == "key");
        let mut inside = is_key;
        let mut lines = Vec::new();
        for line in text.lines().map(str::trim).chain(["-----"]) {
            if line.starts_with("-----") {
                secrets.extend(secret_lines(&lines).iter().map(|&line| line.to_owned()));
                lines.clear();
                inside = line.contains("BEGIN") && line.contains("PRIVATE KEY");
            } else if inside && line.len() >= 32 {
                lines.push(line);
            }
        }
    }
    Ok(())
}

/// Those lines of a private key that hold something of the secret part. The file of a key holds the public part too, which
/// everybody may see in its certificate: with curves at the end, with RSA at the beginning.
#[must_use]
pub fn secret_lines<'a, 'b>(lines: &'b [&'a str]) -> &'b [&'a str] {
    match lines.len() {
        0..=2 => lines,
        3..=6 => lines.get(..2).unwrap_or_default(),
        many => lines.get(many * 2 / 3..).unwrap_or_default(),
    }
}
