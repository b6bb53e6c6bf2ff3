//! `sgctl acl explain` and `sgctl acl lint`: what a list means. The rules are in the model; this asks the API for the
//! list and prints.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::Serialize;
use sg_model::{
    Acl, AclFile, CanonicalPath, FindingKind, Host, HostPattern, HostPort, Reached, Scope, Why,
};
use sg_proto::api;
use sg_proto::convert::api::acl_from_api;

use crate::connection::Api;
use crate::failure::Failure;
use crate::names::GatewayRef;
use crate::output;
use crate::session::Session;

/// `HOST:PORT` with an optional path, as a user would ask for it.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    target: HostPort,
    path: Option<String>,
}

impl FromStr for Asked {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (target, path) = match text.find('/').and_then(|at| text.split_at_checked(at)) {
            Some((target, path)) => (target, Some(path.to_owned())),
            None => (text, None),
        };
        let target = target
            .parse()
            .map_err(|e: sg_model::Invalid| e.to_string())?;
        Ok(Self { target, path })
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Explanation {
    gateway: String,
    target: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    allowed: bool,
    /// The word of [`Why`], or that of the refusal of the path.
    why: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    number: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    entry: Option<String>,
    /// A 64-bit number, so a string in JSON.
    generation: String,
}

pub(crate) async fn explain(
    api: &Api,
    session: &Session,
    gateway: &GatewayRef,
    asked: &Asked,
) -> Result<(), Failure> {
    let shown = super::get(api, gateway).await?;
    let acl = acl_from_api(&shown)?;
    let mut explanation = Explanation {
        gateway: shown.gateway.clone(),
        target: asked.target.to_string(),
        path: asked.path.clone(),
        allowed: false,
        why: "",
        number: None,
        entry: None,
        generation: shown.generation.to_string(),
    };
    let mut text = String::new();
    let path = asked.path.as_deref().map(CanonicalPath::parse).transpose();
    match path {
        Err(refusal) => {
            explanation.why = refusal.word();
            text.push_str(&format!(
                "denied: a request for this path is answered with 400 before any rule is asked: {refusal}\n"
            ));
        }
        Ok(path) => {
            let scope = path.as_ref().map_or(Scope::Stream, Scope::Path);
            let decision = acl.decide_for(&asked.target, scope);
            explanation.path = path.as_ref().map(ToString::to_string);
            explanation.allowed = decision.allowed;
            explanation.why = decision.why.as_str();
            explanation.number = decision.number;
            explanation.entry = decision.entry.map(ToString::to_string);
            text.push_str(&sentence(&acl, &explanation, decision.why));
        }
    }
    if explanation.allowed {
        text.push_str(&remarks(&acl, &asked.target));
    }
    output::value(session.format(), &explanation, &text)
}

/// What decided, and what that means.
fn sentence(acl: &Acl, explained: &Explanation, why: Why) -> String {
    let verdict = if explained.allowed {
        "allowed"
    } else {
        "denied"
    };
    let rule = match (explained.number, &explained.entry) {
        (Some(number), Some(entry)) => format!("number {number}, {entry}"),
        _ => format!(
            "no entry names it, and unlisted targets are {}",
            acl_word(acl)
        ),
    };
    match why {
        Why::Entry => format!("{verdict}: by {rule}\n"),
        Why::Unlisted => format!("{verdict}: {rule}\n"),
        Why::OtherPath => format!(
            "{verdict}: only paths are allowed there, as by {rule}, and this one is under none of them\n"
        ),
        Why::NoPath => format!(
            "{verdict} for streams: only paths are allowed there, as by {rule}; HTTP destinations reach those. Give a path to ask about one\n"
        ),
        Why::Unnamed => format!(
            "{verdict}: an address of this kind must be named by an entry of its own; what would have allowed it: {rule}\n"
        ),
    }
}

fn acl_word(acl: &Acl) -> &'static str {
    match acl.unlisted {
        sg_model::Action::Allow => "allowed",
        sg_model::Action::Deny => "denied",
    }
}

/// What can still narrow it, beyond the list's rule for the target.
fn remarks(acl: &Acl, target: &HostPort) -> String {
    let mut text = String::new();
    if matches!(target.host(), Host::Name(_)) {
        let numbers: Vec<String> = (1..)
            .zip(&acl.entries)
            .filter(|(_, entry)| {
                let by_address = match &entry.host {
                    Some(HostPattern::Addresses(_) | HostPattern::Host(Host::Ip(_))) => true,
                    Some(HostPattern::Host(Host::Name(_))) | None => false,
                };
                by_address && entry.port.is_none_or(|ports| ports.contains(target.port()))
            })
            .map(|(number, _): (usize, _)| number.to_string())
            .collect();
        if !numbers.is_empty() {
            text.push_str(&format!(
                "The address that the client finds for the name is asked about too: number {}.\n",
                numbers.join(", ")
            ));
        }
    }
    text.push_str("A client's own file (--local-acl) may narrow this further.\n");
    text
}

/// What `lint` looks at.
#[derive(Debug, Clone)]
pub(crate) enum Subject {
    Gateway(GatewayRef),
    File(PathBuf),
}

impl FromStr for Subject {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // Names and ids of gateways have neither slash nor dot.
        let is_file = text == "-" || text.contains(['/', '.']) && !text.starts_with("gateways/");
        if is_file {
            return Ok(Self::File(text.into()));
        }
        text.parse().map(Self::Gateway)
    }
}

#[derive(Debug, Serialize)]
struct Found {
    kind: FindingKindWord,
    #[serde(skip_serializing_if = "Option::is_none")]
    number: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
    message: String,
}

#[derive(Debug, Serialize)]
#[serde(transparent)]
struct FindingKindWord(&'static str);

impl From<FindingKind> for FindingKindWord {
    fn from(kind: FindingKind) -> Self {
        Self(kind.as_str())
    }
}

#[derive(Debug, Serialize)]
struct Findings {
    findings: Vec<Found>,
}

/// Prints what is wrong with a list; fails with exit code 7 if something is.
pub(crate) async fn lint(
    session: &Session,
    subject: Subject,
    gateway: Option<GatewayRef>,
) -> Result<(), Failure> {
    let (acl, lines, gateway, mut findings) = match subject {
        Subject::Gateway(gateway) => {
            let shown = super::get(&session.api()?, &gateway).await?;
            (acl_from_api(&shown)?, Vec::new(), Some(gateway), Vec::new())
        }
        Subject::File(path) => {
            let file = read_file(&path)?;
            let notes = file.notes.into_iter().map(|(line, message)| Found {
                kind: FindingKind::Shadowed.into(),
                number: None,
                line: Some(line),
                message,
            });
            (file.acl, file.lines, gateway, notes.collect())
        }
    };
    let reached = match gateway {
        Some(gateway) => Some(reached(&session.api()?, &gateway).await?),
        None => None,
    };
    findings.extend(
        sg_model::lint(&acl, reached.as_deref())
            .into_iter()
            .map(|finding| Found {
                kind: finding.kind.into(),
                line: finding
                    .number
                    .and_then(|number| lines.get(number - 1).copied()),
                number: finding.number,
                message: finding.message,
            }),
    );
    let findings = Findings { findings };
    let rows = findings.findings.iter().map(|found| {
        let number = found.line.or(found.number).map(|number| number.to_string());
        vec![
            number.unwrap_or_default(),
            found.kind.0.to_owned(),
            found.message.clone(),
        ]
    });
    let place = if lines.is_empty() { "#" } else { "LINE" };
    let text = match findings.findings.len() {
        0 => String::new(),
        _ => output::table(&[place, "FINDING", "MESSAGE"], rows),
    };
    output::value(session.format(), &findings, &text)?;
    match findings.findings.len() {
        0 => Ok(()),
        1 => Err(Failure::found("FINDINGS", "1 finding")),
        many => Err(Failure::found("FINDINGS", format!("{many} findings"))),
    }
}

/// Where the gateway's destinations lead on premises. What lies in the cloud is not for these lists.
async fn reached(api: &Api, gateway: &GatewayRef) -> Result<Vec<Reached>, Failure> {
    let all = crate::destination::list(api, gateway).await?;
    all.iter()
        .filter(|destination| destination.kind == "on-premises")
        .map(|destination| {
            Ok(Reached {
                resource: resource(destination)?,
                reads_paths: destination.protocol.starts_with("http"),
            })
        })
        .collect()
}

fn resource(destination: &api::Destination) -> Result<HostPort, Failure> {
    let port = u16::try_from(destination.resource_port).unwrap_or_default();
    Ok(HostPort::new(destination.resource_host.parse()?, port)?)
}

/// Longest file that is read.
const LONGEST: u64 = 4 << 20;

/// Reads a list from a file, or from standard input if it is called `-`.
pub(crate) fn read_file(path: &Path) -> Result<AclFile, Failure> {
    use std::io::Read as _;
    let failed =
        |error: std::io::Error| Failure::local(format!("cannot read {}", path.display()), &error);
    let mut text = String::new();
    let source: Box<dyn std::io::Read> = if path == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        Box::new(std::fs::File::open(path).map_err(failed)?)
    };
    source
        .take(LONGEST + 1)
        .read_to_string(&mut text)
        .map_err(failed)?;
    if text.len() as u64 > LONGEST {
        return Err(Failure::usage(format!(
            "{} is longer than 4 MiB",
            path.display()
        )));
    }
    AclFile::parse(&text).map_err(|error| {
        Failure::usage(format!("{}, {error}", path.display()))
            .hint("write lines as `acl allow HOST:PORT[/PATH]` or `acl deny HOST:PORT`, and # before comments")
    })
}
