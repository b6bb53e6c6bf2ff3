//! PostgreSQL: a cluster made in a folder, its server, and its programs as users.

use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::process::{is_root, print_tails};
use crate::{Launch, Process, debian, eventually, within};

/// The server refuses to run as root, so it runs as the package's user then.
const USER: &str = "postgres";

/// The longest that one program run against the server may take.
const PROGRAM: Duration = Duration::from_secs(120);

/// A running server with an empty database.
#[derive(Debug)]
pub struct Postgres {
    // Ends before its folder goes.
    _server: Process,
    /// What ends it in order.
    stop: Launch,
    port: u16,
    folder: TempDir,
}

impl Postgres {
    /// Makes a cluster and starts its server on this loopback port.
    ///
    /// # Errors
    /// PostgreSQL is not installed or does not start.
    pub async fn start(port: u16) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("sg-postgres-")
            .tempdir()
            .context("folder")?;
        // Its user must get through to the data.
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755))?;
        let data = folder.path().join("data");
        std::fs::create_dir(&data).context("data folder")?;
        if is_root() {
            let id = Launch::new("id", debian("id")?, folder.path())
                .arg("-u")
                .arg(USER);
            let id = id
                .run()
                .await?
                .trim()
                .parse()
                .context("user id of postgres")?;
            chown(&data, Some(id), None).context("owner of the data folder")?;
        }
        let initdb = Launch::new("initdb", debian("initdb")?, folder.path())
            .user(USER)
            .directory(&data)
            .option("--pgdata", &data)
            .option("--username", USER)
            .option("--auth", "trust")
            .option("--encoding", "UTF8")
            .arg("--no-sync");
        within(PROGRAM, "initdb", initdb.run()).await??;
        let server = Launch::new("postgres", debian("postgres")?, folder.path())
            .user(USER)
            .directory(&data)
            .option("-D", &data)
            .option("-p", port.to_string())
            .option("-h", "127.0.0.1")
            // No socket files; the data is thrown away, so it need not survive a power cut.
            .option("-c", "unix_socket_directories=")
            .option("-c", "fsync=off")
            .option("-c", "max_connections=50")
            .option("-c", "dynamic_shared_memory_type=mmap")
            .start()?;
        let stop = Launch::new("pg_ctl", debian("pg_ctl")?, folder.path())
            .user(USER)
            .directory(&data)
            .arg("stop")
            .option("--pgdata", &data)
            .option("--mode", "fast")
            .option("--timeout", "5");
        let postgres = Self {
            _server: server,
            stop,
            port,
            folder,
        };
        eventually(Duration::from_secs(30), "postgres answers", async || {
            postgres.psql(port, "select 1").await
        })
        .await
        .inspect_err(|_| print_tails(postgres.folder.path()))?;
        Ok(postgres)
    }

    /// HOST:PORT.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// A file in the cluster's folder, for data that goes in or comes out.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What `psql` prints for one statement or `\`-command, connected to 127.0.0.1 at this port.
    ///
    /// # Errors
    /// It fails or takes too long.
    pub async fn psql(&self, port: u16, statement: &str) -> Result<String> {
        let psql = self.program("psql", port)?;
        let psql = psql
            .arg("--no-psqlrc")
            .arg("--tuples-only")
            .arg("--no-align")
            .option("-v", "ON_ERROR_STOP=1")
            .option("-c", statement);
        let output = within(PROGRAM, "psql", psql.run()).await??;
        Ok(output.trim().to_owned())
    }

    /// Runs `pgbench` with these arguments.
    ///
    /// # Errors
    /// It fails or takes too long.
    pub async fn pgbench(&self, port: u16, arguments: &[&str]) -> Result<String> {
        let mut pgbench = self.program("pgbench", port)?;
        for argument in arguments {
            pgbench = pgbench.arg(*argument);
        }
        within(PROGRAM, "pgbench", pgbench.run()).await?
    }

    fn program(&self, name: &str, port: u16) -> Result<Launch> {
        Ok(Launch::new(name, debian(name)?, self.folder.path())
            .env("PGHOST", "127.0.0.1")
            .env("PGPORT", port.to_string())
            .env("PGUSER", USER)
            .env("PGDATABASE", USER)
            .env("PGCONNECT_TIMEOUT", "10")
            .env("PGSSLMODE", "disable")
            .env("PGGSSENCMODE", "disable"))
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // One that is killed leaves shared memory behind. If this fails, it is killed all the same.
        drop(self.stop.run_blocking());
    }
}
