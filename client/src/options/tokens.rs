//! The security tokens that the client is given: one for each gateway, from a file or from the command line.

use std::path::Path;

use sg_runtime::config::Invalid;
use sg_runtime::secret::{Secret, TokenKind};

use super::{lists, too_many};

/// The tokens in the file of `--token-file`, one for each of so many gateways.
///
/// # Errors
/// The file cannot be read, or something in it is no security token.
pub fn read_tokens(path: &Path, count: usize) -> Result<Vec<Option<Secret<String>>>, Invalid> {
    let text = Secret::read(path).map_err(|error| {
        let remedy = "give a file with one token per gateway, one per line";
        Invalid::new("--token-file", path.display(), error.to_string(), remedy)
    })?;
    let lines = text
        .expose()
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty());
    check_tokens(
        "--token-file",
        lines.flat_map(lists::split).collect(),
        count,
    )
}

pub(super) fn check_tokens(
    key: &str,
    texts: Vec<Option<String>>,
    count: usize,
) -> Result<Vec<Option<Secret<String>>>, Invalid> {
    let texts = lists::spread(texts, count).map_err(|given| too_many(key, given, count))?;
    let tokens = texts
        .into_iter()
        .map(|text| text.map(Secret::new))
        .collect::<Vec<_>>();
    for token in tokens.iter().flatten() {
        let text = token.expose();
        // Other texts may be tokens of later versions; the node decides. The text itself stays
        // out of the message.
        let kind = TokenKind::of(text).filter(|kind| *kind != TokenKind::Security);
        let (problem, remedy) = if let Some(kind) = kind {
            (
                format!("this is {kind} and not a security token"),
                "give the one that `sgctl gateway create` answered (sgt_...)",
            )
        } else if text.len() > 4096 || !text.bytes().all(|b| b.is_ascii_graphic()) {
            (
                "a token has a character that tokens do not have, or is too long".to_owned(),
                "copy the token again",
            )
        } else {
            continue;
        };
        return Err(Invalid::new(key, "[secret]", problem, remedy));
    }
    Ok(tokens)
}
