//! The console: a person types commands on standard input and reads the answers on standard output. It needs no credential
//! of the control plane: what it changes it asks for over the client's tunnels.
//!
//! The process never depends on it. When standard input ends the console does, and the client goes on; only `q` ends the
//! client. What the letters mean is [`ConsoleCommand`]; several gateways are told apart by `@GATEWAY` at the end of a
//! line. Start with [`run`].

mod input;
mod line;

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sg_model::{AclCommand, AclEdit, AclFile, ConsoleCommand};
use sg_runtime::shutdown::Shutdown;
use tokio::io::AsyncReadExt as _;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

pub use self::input::{Line, lines};
use self::line::Request;
use crate::edits::{self, Made};
use crate::gateway::GatewayContext;

/// Answers that wait to be printed.
const ANSWERS: usize = 4;
/// Longest file of commands, in bytes.
const LONGEST_FILE: u64 = 1024 * 1024;
/// Time to read one.
const READ: Duration = Duration::from_secs(5);
/// How long a change that was made may take to be in force here before the answer is given without it.
const IN_FORCE: Duration = Duration::from_secs(2);
/// How long the console outlives the beginning of the drain.
const LAST_WORDS: Duration = Duration::from_millis(500);
const PROMPT: &str = "cli> ";

/// Answers lines until there are no more, or the process drains. `prompt`: a person is at both ends.
pub async fn run(
    gateways: Vec<Arc<GatewayContext>>,
    mut lines: mpsc::Receiver<Line>,
    shutdown: Shutdown,
    prompt: bool,
) {
    let (answers, printed) = mpsc::channel(ANSWERS);
    let console = Console { gateways, shutdown };
    let work = async {
        if prompt {
            print(&answers, format!("help lists the commands\n{PROMPT}")).await;
        }
        while let Some(line) = lines.recv().await {
            let mut answer = console.answer(line).await;
            if prompt {
                answer.push_str(PROMPT);
            }
            print(&answers, answer).await;
        }
        tracing::info!("standard input has ended: the console is closed, the client goes on");
        drop(answers);
    };
    let print = printer(printed);
    tokio::select! {
        () = async { tokio::join!(work, print); } => {}
        () = last_words(&console.shutdown) => {}
    }
}

/// Until some time after the drain has begun: what was answered may still be printed.
async fn last_words(shutdown: &Shutdown) {
    shutdown.wait_draining().await;
    sleep(LAST_WORDS).await;
}

async fn print(answers: &mpsc::Sender<String>, answer: String) {
    if !answer.is_empty() && answers.send(answer).await.is_err() {
        tracing::trace!("nobody reads the answers of the console");
    }
}

/// Prints answers one after the other, on a thread that may be held up by whoever reads.
async fn printer(mut answers: mpsc::Receiver<String>) {
    while let Some(answer) = answers.recv().await {
        let printed = tokio::task::spawn_blocking(move || {
            let mut out = std::io::stdout().lock();
            out.write_all(answer.as_bytes()).and_then(|()| out.flush())
        });
        if !matches!(printed.await, Ok(Ok(()))) {
            tracing::debug!("an answer of the console could not be printed");
        }
    }
}

struct Console {
    gateways: Vec<Arc<GatewayContext>>,
    shutdown: Shutdown,
}

impl Console {
    /// Does what a line asks for; answers what is to be printed.
    async fn answer(&self, line: Line) -> String {
        let text = match line {
            Line::Text(text) => text,
            Line::TooLong => return "error: the line is too long\n".to_owned(),
            Line::NoText => return "error: the line is not UTF-8\n".to_owned(),
        };
        let names: Vec<_> = self
            .gateways
            .iter()
            .map(|g| (g.gateway.clone(), g.name()))
            .collect();
        let request = match line::parse(&text, &names) {
            Ok(Some(request)) => request,
            Ok(None) => return String::new(),
            Err(error) => return format!("error: {error}\n"),
        };
        match self.carry_out(request).await {
            Ok(answer) => answer,
            Err(error) => format!("error: {error}\n"),
        }
    }

    async fn carry_out(&self, request: Request) -> Result<String, String> {
        let Request { command, gateway } = request;
        match command {
            ConsoleCommand::Help => Ok(self.help()),
            ConsoleCommand::Quit => {
                self.shutdown.begin();
                Ok("the client ends\n".to_owned())
            }
            ConsoleCommand::Acl(AclCommand::Show) => Ok(self
                .gateways
                .iter()
                .enumerate()
                .filter(|(number, _)| gateway.is_none_or(|wanted| wanted == *number))
                .map(|(_, gateway)| show(gateway))
                .collect::<Vec<_>>()
                .join("\n")),
            ConsoleCommand::Acl(command) => {
                let gateway = self.one(gateway)?;
                let said = match &command {
                    AclCommand::Add(entry) => entry.to_string(),
                    AclCommand::Remove(target) => format!("no acl {}", target.target_and_path()),
                    AclCommand::Reset | AclCommand::Show => "no acl".to_owned(),
                };
                match AclEdit::of(&command) {
                    Some(edit) => change(gateway, &edit, &said).await,
                    None => Ok(show(gateway)),
                }
            }
            ConsoleCommand::File(path) => {
                let gateway = self.one(gateway)?;
                let (edit, notes) = read(&path).await?;
                let answer = change(gateway, &edit, "list replaced").await?;
                Ok(notes + &answer)
            }
        }
    }

    /// The gateway that is meant, which must be clear where something is changed.
    fn one(&self, gateway: Option<usize>) -> Result<&GatewayContext, String> {
        let only = (self.gateways.len() == 1).then_some(0);
        let chosen = gateway
            .or(only)
            .and_then(|number| self.gateways.get(number));
        chosen.map(AsRef::as_ref).ok_or_else(|| {
            let names: Vec<_> = self
                .gateways
                .iter()
                .map(|g| format!("@{}", g.name()))
                .collect();
            format!(
                "this client has several gateways: end the line with the one that is meant, {}",
                names.join(" or ")
            )
        })
    }

    fn help(&self) -> String {
        let mut help = ConsoleCommand::HELP.to_owned();
        if self.gateways.len() > 1 {
            help.push_str("   @GATEWAY at the end of a line says which gateway is meant\n");
        }
        help
    }
}

/// Asks for a change, and waits a little until it holds here, so that whoever looks next sees it.
async fn change(gateway: &GatewayContext, edit: &AclEdit, said: &str) -> Result<String, String> {
    let Made { version, changed } = edits::ask(gateway, edit).await.map_err(|refused| {
        let what = match refused.is_unclear() {
            true => "unclear",
            false => "not changed",
        };
        format!("{what}: {refused}")
    })?;
    let mut policy = gateway.acl.subscribe();
    let reached = policy.wait_for(|policy| policy.version().is_some_and(|have| have >= version));
    let in_force = match timeout(IN_FORCE, reached).await {
        Ok(_) => "in force here",
        Err(_) => "not in force here yet",
    };
    let generation = version.generation;
    Ok(match changed {
        true => format!("{said}: generation {generation}, {in_force}\n"),
        false => format!("{said}: the list says so already, generation {generation}\n"),
    })
}

/// The list that is enforced, and what else narrows it.
fn show(gateway: &GatewayContext) -> String {
    let policy = gateway.acl.policy();
    let name = gateway.name();
    let Some(acl) = policy.gateway() else {
        return format!("gateway {name}: no node has told the list yet, so everything is denied\n");
    };
    let connected = match gateway.tunnels.has_other(&[]) {
        true => "",
        false => ", as it was when the client was last connected",
    };
    let mut text = format!(
        "gateway {name}: generation {}{connected}\n{}",
        acl.version.generation,
        acl.show()
    );
    for local in policy.local() {
        text.push_str("\nThis client was started with a list of its own (--local-acl, -F): both must allow what is reached.\n");
        text.push_str(&local.show());
    }
    text
}

/// Reads a file of commands; answers the change it asks for, and notes about its lines.
async fn read(path: &Path) -> Result<(AclEdit, String), String> {
    let place = path.display().to_string();
    let place = place.escape_debug();
    let work = async {
        // Anything else could hold the reader for ever.
        if !tokio::fs::metadata(path).await?.is_file() {
            return Err(std::io::Error::other("it is no regular file"));
        }
        let mut bytes = Vec::new();
        let file = tokio::fs::File::open(path).await?;
        file.take(LONGEST_FILE + 1).read_to_end(&mut bytes).await?;
        Ok(bytes)
    };
    let bytes = match timeout(READ, work).await {
        Ok(read) => read.map_err(|error| format!("{place} cannot be read: {error}"))?,
        Err(_) => return Err(format!("{place} cannot be read in time")),
    };
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > LONGEST_FILE {
        return Err(format!("{place} is longer than {LONGEST_FILE} bytes"));
    }
    let text = String::from_utf8(bytes).map_err(|_| format!("{place} is not UTF-8"))?;
    let file = AclFile::parse(&text).map_err(|error| format!("{place}, {error}"))?;
    let note = |(line, why): (usize, String)| format!("{place}, line {line}: {why}\n");
    let notes = file.notes.into_iter().map(note).collect();
    Ok((AclEdit::replace_by(file.acl), notes))
}
