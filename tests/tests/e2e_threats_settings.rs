//! Row 5 of the threat table: there is no setting that is not read, and none that is read under a name nobody wrote. For each flag
//! of each daemon, made out of its grammar: as a flag, as a variable and as a key of the file it changes the same in what
//! the program goes by; a name that is none ends the program with 2. A new flag without a case here fails.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Debug;

use anyhow::{Context as _, Result, ensure};
use clap::{Arg, ArgAction, CommandFactory, Parser};
use sg_runtime::config::load_from;
use sg_tests::secure::Authority;
use sg_tests::{Launch, PATIENCE, prepare, product};

/// A flag's value that is not its default; the flags that it needs beside it.
type Case = (&'static str, &'static str, &'static [&'static str]);

const FILE: &str = "/dev/null";
const HASH: &str = "sha256:abababababababababababababababababababababababababababababababab";

/// Those of every daemon.
const COMMON: [Case; 5] = [
    ("log-format", "json", &[]),
    ("log-level", "debug", &[]),
    ("ready-file", FILE, &[]),
    ("drain-timeout", "7s", &[]),
    ("admin-listen", "127.0.0.1:7", &[]),
];

/// What tunnels may take, of client and node.
const LIMITS: [Case; 16] = [
    ("worker-threads", "7", &[]),
    ("limit-streams", "7", &[]),
    ("limit-opens", "7:9", &[]),
    ("limit-failed-opens", "7:9", &[]),
    ("limit-early-resets", "777:9999", &[]),
    ("limit-empty-frames", "7:9", &[]),
    ("limit-messages", "7:9", &[]),
    ("limit-datagrams", "7:9", &[]),
    ("limit-datagram-queue", "65KiB", &[]),
    ("limit-pending-opens", "7", &[]),
    ("limit-frame", "2KiB", &[]),
    ("limit-metadata", "2KiB", &[]),
    ("limit-window", "65KiB", &[]),
    ("limit-windows", "2MiB", &[]),
    ("limit-queues", "2MiB", &[]),
    ("limit-memory", "1GiB", &[]),
];

const CONTROL_PLANE: [Case; 18] = [
    ("client-certificate-life", "700h", &[]),
    ("node-certificate-life", "700h", &[]),
    ("own-certificate-life", "700h", &[]),
    ("recover-admin", "true", &[]),
    ("store", "embedded:/tmp/other", &[]),
    ("data-dir", "/tmp/other", &[]),
    ("listen", "127.0.0.1:7", &[]),
    ("http-listen", "127.0.0.1:7", &[]),
    ("advertise", "other.example", &[]),
    ("store-key-file", FILE, &[]),
    ("audit-records", "7", &[]),
    ("audit-days", "7", &[]),
    ("etcd-ca", FILE, &[]),
    ("etcd-cert", FILE, &["etcd-key"]),
    ("etcd-key", FILE, &["etcd-cert"]),
    ("etcd-user", "somebody", &["etcd-password-file"]),
    ("etcd-password-file", FILE, &["etcd-user"]),
    ("no-compaction", "true", &[]),
];

const NODE: [Case; 14] = [
    ("control-plane", "other.example:7400", &[]),
    ("join-token-file", FILE, &[]),
    ("data-dir", "/tmp/other", &[]),
    ("tunnel-listen", "127.0.0.1:7", &[]),
    ("destination-address", "127.0.0.7", &[]),
    ("destination-ports", "7-9", &[]),
    ("advertise", "other.example", &[]),
    ("name", "other", &[]),
    ("group", "other", &[]),
    ("cloud-allow", "10.0.0.0/8", &[]),
    ("trusted-proxies", "10.0.0.0/8", &[]),
    ("limit-handshakes", "7", &[]),
    ("limit-handshakes-per-source", "7", &[]),
    ("limit-streams-per-source", "7", &[]),
];

const CLIENT: [Case; 22] = [
    ("gateway_id", "other", &[]),
    ("sectoken", "sgt_1", &[]),
    ("token-file", "TOKENS", &[]),
    ("gateway", "other.example:9000", &[]),
    (
        "ca",
        "sha256:cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd",
        &[],
    ),
    ("aclfile", "ACL", &[]),
    ("local-acl", "ACL", &[]),
    ("acl-path-prefix", "text", &["local-acl"]),
    ("console", "true", &[]),
    ("no-console", "true", &[]),
    ("data-dir", "/tmp/other", &[]),
    ("name", "other", &[]),
    ("connections", "7", &[]),
    ("client-address", "127.0.0.7", &[]),
    ("reconnect", "7", &[]),
    ("once", "true", &[]),
    ("loglevel", "DEBUG", &[]),
    ("proxy", "https://u:canary@127.0.0.1:3128", &[]),
    ("proxy-file", "PROXY", &[]),
    ("proxy-ca", "CA", &["proxy"]),
    ("service", "true", &["reconnect"]),
    ("limit-dials", "7", &[]),
];

/// Documented as accepted and without effect, for old scripts.
const WITHOUT_EFFECT: [&str; 6] = ["logpath", "port", "password", "noUI", "allow", "no-license"];

/// What does not get into the settings, and where it shows instead.
const ELSEWHERE: [&str; 2] = [
    // Of the runtime, which is there before the settings.
    "worker-threads",
    // Read before it is looked at: a file that is no certificate is an error.
    "proxy-ca",
];

/// The name of a flag in all layers.
fn name_of(arg: &Arg) -> String {
    arg.get_long().unwrap_or(arg.get_id().as_str()).to_owned()
}

fn variable(name: &str) -> String {
    format!("SG_{}", name.replace('-', "_").to_uppercase())
}

struct Program<T> {
    base: Vec<(&'static str, &'static str)>,
    cases: BTreeMap<&'static str, Case>,
    show: fn(T) -> Result<String>,
}

#[derive(Clone, Copy, Debug)]
enum Layer {
    Flag,
    Variable,
    File,
}

impl<T: Parser + CommandFactory + Debug> Program<T> {
    /// The settings with these values, given in this layer.
    fn settings(
        &self,
        folder: &std::path::Path,
        layer: Layer,
        values: &[(&str, String)],
    ) -> Result<(String, String)> {
        let mut arguments = vec![OsString::from("program")];
        let mut variables: BTreeMap<String, OsString> = BTreeMap::new();
        let mut file = String::new();
        let command = T::command();
        let base = self
            .base
            .iter()
            .map(|(name, value)| (*name, (*value).to_owned()));
        let base = base.filter(|(name, _)| !values.iter().any(|(own, _)| own == name));
        for ((name, value), layer) in base
            .map(|value| (value, Layer::Flag))
            .chain(values.iter().map(|value| (value.clone(), layer)))
        {
            let arg = command
                .get_arguments()
                .find(|arg| name_of(arg) == name)
                .with_context(|| format!("{name} is a flag"))?;
            let is_switch = matches!(arg.get_action(), ArgAction::SetTrue);
            match layer {
                Layer::Flag if arg.is_positional() => arguments.push(value.into()),
                Layer::Flag if is_switch => arguments.push(format!("--{name}").into()),
                Layer::Flag => arguments.push(format!("--{name}={value}").into()),
                Layer::Variable if name == "log-level" => {
                    variables.insert("SG_LOG".to_owned(), value.into());
                }
                Layer::Variable => {
                    variables.insert(variable(name), value.into());
                }
                Layer::File => {
                    let plain = is_switch || value.parse::<i64>().is_ok();
                    let value = match plain {
                        true => value,
                        false => format!("{value:?}"),
                    };
                    let key = name.replace('_', "-");
                    file.push_str(&format!("{key} = {value}\n"));
                }
            }
        }
        let path = folder.join("settings.toml");
        std::fs::write(&path, &file)?;
        if matches!(layer, Layer::File) {
            arguments.push(format!("--config={}", path.display()).into());
        }
        let args: T = load_from(arguments, &|name| variables.get(name).cloned())
            .map_err(|error| anyhow::anyhow!("{values:?} by {layer:?}: {error}"))?;
        let shown = format!("{args:?}");
        let settings = (self.show)(args).with_context(|| format!("{values:?} by {layer:?}"))?;
        Ok((shown, settings))
    }

    fn check(&self, folder: &std::path::Path) -> Result<()> {
        let files = [
            ("TOKENS", "sgt_canary\n"),
            ("ACL", "acl allow db:1\n"),
            ("PROXY", "http://u:canary@127.0.0.1:3128\n"),
        ];
        for (name, content) in files {
            std::fs::write(folder.join(name), content)?;
        }
        let authority = Authority::new(folder, "ca")?;
        let value_of = |(_, value, _): &Case| match *value {
            "CA" => authority.file.display().to_string(),
            value if files.iter().any(|(name, _)| *name == value) => {
                folder.join(value).display().to_string()
            }
            value => value.to_owned(),
        };
        let mut tried = 0;
        for arg in T::command().get_arguments() {
            let name = name_of(arg);
            if ["help", "version", "config"].contains(&name.as_str())
                || WITHOUT_EFFECT.contains(&name.as_str())
            {
                continue;
            }
            let case = self
                .cases
                .get(name.as_str())
                .with_context(|| format!("--{name} has no case here: add one"))?;
            let mut besides = Vec::new();
            for other in case.2 {
                let other = self
                    .cases
                    .get(other)
                    .with_context(|| format!("{other} has a case"))?;
                besides.push((other.0, value_of(other)));
            }
            let mut values = besides.clone();
            values.push((case.0, value_of(case)));
            let without = self.settings(folder, Layer::Flag, &besides);
            let mut first = None;
            for layer in [Layer::Flag, Layer::Variable, Layer::File] {
                let (args, settings) = self.settings(folder, layer, &values)?;
                // Flags that need each other cannot be looked at alone.
                if let Ok((args_without, settings_without)) = &without {
                    ensure!(args != *args_without, "--{name} by {layer:?} is not read");
                    let elsewhere = ELSEWHERE.contains(&name.as_str());
                    ensure!(
                        elsewhere || settings != *settings_without,
                        "--{name} by {layer:?} is read and not used: {settings}"
                    );
                }
                ensure!(
                    !args.contains("canary") && !settings.contains("canary"),
                    "--{name} shows a secret"
                );
                // Where it was set makes no difference, but for the file itself.
                let path = folder.join("settings.toml").display().to_string();
                let comparable = settings.replace(&format!("Some(\"{path}\")"), "None");
                let first = first.get_or_insert_with(|| comparable.clone());
                ensure!(
                    *first == comparable,
                    "--{name} by {layer:?}: {comparable}, not {first}"
                );
            }
            tried += 1;
        }
        ensure!(
            tried == self.cases.len(),
            "{tried} flags, and {} cases",
            self.cases.len()
        );
        Ok(())
    }
}

fn cases(parts: &[&[Case]]) -> BTreeMap<&'static str, Case> {
    parts
        .concat()
        .into_iter()
        .map(|case| (case.0, case))
        .collect()
}

#[test]
fn threat_05_every_setting_of_the_control_plane_is_read() -> Result<()> {
    let folder = tempfile::tempdir()?;
    Program::<sg_control_plane::config::Args> {
        base: vec![("store", "memory:"), ("data-dir", "/tmp/x")],
        cases: cases(&[&COMMON, &CONTROL_PLANE]),
        // It goes by the flags themselves.
        show: |args| Ok(format!("{args:?}")),
    }
    .check(folder.path())
}

#[test]
fn threat_05_every_setting_of_a_node_is_read() -> Result<()> {
    let folder = tempfile::tempdir()?;
    Program::<sg_data_plane::config::Args> {
        base: vec![("data-dir", "/tmp/x"), ("name", "node")],
        cases: cases(&[&COMMON, &LIMITS, &NODE]),
        show: |args| {
            let settings = args.check().map_err(|error| anyhow::anyhow!("{error}"))?;
            Ok(format!("{settings:?}"))
        },
    }
    .check(folder.path())
}

#[test]
fn threat_05_every_setting_of_a_client_is_read() -> Result<()> {
    let folder = tempfile::tempdir()?;
    Program::<sg_client::options::Args> {
        base: vec![
            ("gateway_id", "dev"),
            ("gateway", "node.example:9000"),
            ("ca", HASH),
            ("data-dir", "/tmp/x"),
            ("name", "client"),
        ],
        cases: cases(&[&COMMON, &LIMITS, &CLIENT]),
        show: |args| {
            let settings = args.check().map_err(|error| anyhow::anyhow!("{error}"))?;
            Ok(format!("{settings:?}"))
        },
    }
    .check(folder.path())
}

/// A name that nobody knows ends each program with 2, wherever it stands; so does a value that is none.
#[tokio::test]
async fn threat_05_an_unknown_or_unusable_setting_ends_every_program_with_2() -> Result<()> {
    prepare();
    let folder = tempfile::tempdir()?;
    let bases: [(&str, &[&str]); 3] = [
        ("sg-control-plane", &["--store", "memory:"]),
        ("sg-data-plane", &[]),
        ("sg-client", &["dev", "-g", "127.0.0.1:1", "--ca", HASH]),
    ];
    for (program, base) in bases {
        let launch = || -> Result<Launch> {
            let mut launch = Launch::new(program, product(program)?, folder.path())
                .option("--data-dir", folder.path().join(program))
                .option("--admin-listen", "127.0.0.1:0");
            for argument in base {
                launch = launch.arg(*argument);
            }
            Ok(launch)
        };
        let file = |content: &str| -> Result<Launch> {
            let path = folder.path().join(format!("{program}.toml"));
            std::fs::write(&path, content)?;
            Ok(launch()?.option("--config", path))
        };
        let wrong = [
            ("unknown flag", launch()?.option("--no-such-setting", "x")),
            ("unknown key", file("no-such-setting = 1\n")?),
            ("unknown key of a table", file("[security]\ntls = false\n")?),
            ("misspelt key", file("drain-timout = '1s'\n")?),
            ("bad flag", launch()?.option("--drain-timeout", "soon")),
            ("bad variable", launch()?.env("SG_DRAIN_TIMEOUT", "soon")),
            ("bad key", file("drain-timeout = 'soon'\n")?),
            ("bad kind of value", file("drain-timeout = [1]\n")?),
            ("no TOML", file("drain-timeout: 1s\n")?),
            ("no file", launch()?.option("--config", "/nowhere/x.toml")),
        ];
        for (what, launch) in wrong {
            let mut process = launch.start()?;
            let status = process.ended(PATIENCE).await?;
            ensure!(
                status.code() == Some(2),
                "{program}, {what}: {status}: {}",
                process.output()?
            );
        }
    }
    Ok(())
}
