//! What went wrong, told three ways: to a person (stderr: one line, causes, a `try:` line), to a
//! script (with `-o json` one object on stdout), and to the shell (the exit code).
//!
//! Everything that fails in this program ends as a [`Failure`]; nothing else prints errors.

use serde::Serialize;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// A command that did not do what was asked.
#[derive(Debug)]
pub(crate) struct Failure {
    code: Code,
    reason: String,
    message: String,
    causes: Vec<String>,
    hint: Option<String>,
    /// Which kind of thing does not exist, where the server says so.
    missing: Option<Box<str>>,
    /// The command did its work; what it found, and has printed, is the problem.
    finding: bool,
}

impl Failure {
    /// A failure of kind `code`; `reason` is one stable word in UPPER_SNAKE.
    pub(crate) fn new(code: Code, reason: &str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason: reason.to_owned(),
            message: message.into(),
            causes: Vec::new(),
            hint: None,
            missing: None,
            finding: false,
        }
    }

    /// A check that found problems, and has printed them.
    pub(crate) fn found(reason: &str, message: impl Into<String>) -> Self {
        Self {
            finding: true,
            ..Self::new(Code::DataLoss, reason, message)
        }
    }

    /// Whether the answer is on stdout already.
    pub(crate) fn is_finding(&self) -> bool {
        self.finding
    }

    /// Bad usage or configuration; nothing was attempted.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, "USAGE", message)
    }

    /// Something on this machine failed: a file, a process, a socket.
    pub(crate) fn local(
        message: impl Into<String>,
        cause: &(dyn std::error::Error + 'static),
    ) -> Self {
        Self::new(Code::Unknown, "LOCAL", message).cause(sg_runtime::telemetry::chain(cause))
    }

    /// The time of the command ended.
    pub(crate) fn deadline(message: impl Into<String>) -> Self {
        Self::new(Code::DeadlineExceeded, "DEADLINE", message)
    }

    /// Adds what lay beneath.
    #[must_use]
    pub(crate) fn cause(mut self, cause: impl Into<String>) -> Self {
        self.causes.push(cause.into());
        self
    }

    /// Says what to type next; the first one said stays.
    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint.get_or_insert(hint.into());
        self
    }

    /// What the server answered, with its details.
    pub(crate) fn from_status(status: &Status) -> Self {
        let details = status.get_error_details();
        let reason = match details.error_info() {
            Some(info) if !info.reason.is_empty() => info.reason.clone(),
            _ => word(status.code()).to_owned(),
        };
        let violations = details
            .bad_request()
            .map(|bad| bad.field_violations.as_slice());
        // A message that already says what a violation says is not followed by the same again.
        let causes = violations
            .unwrap_or_default()
            .iter()
            .filter(|v| !status.message().contains(&v.description))
            .map(|v| format!("{}: {}", v.field, v.description))
            .collect();
        let message = match status.message() {
            "" => format!("the control plane answered {}", word(status.code())),
            text => text.to_owned(),
        };
        let failure = Self {
            code: status.code(),
            reason,
            message,
            causes,
            hint: None,
            missing: details
                .error_info()
                .and_then(|info| info.metadata.get("kind").map(|kind| kind.as_str().into())),
            finding: false,
        };
        match status.code() {
            // Whatever was looked for in it: nothing else can be seen of a gateway that is not there.
            Code::NotFound if failure.is_missing("gateway") => failure.hint("sgctl gateway list"),
            Code::Unauthenticated => failure.hint(
                "--token-file with an admin token of this control plane (admin.token under its --data-dir)",
            ),
            Code::Unavailable => failure.hint("the same again, or name further control planes: --server A,B"),
            Code::Unimplemented if failure.reason == "UNIMPLEMENTED" => failure.hint("sgctl version, and the version of the control plane: sgctl status"),
            _ => failure,
        }
    }

    /// The same failure with flags of the command in place of fields of the API.
    #[must_use]
    pub(crate) fn named(mut self, command: &str) -> Self {
        if self.code == Code::InvalidArgument {
            let texts = std::iter::once(&mut self.message).chain(&mut self.causes);
            texts.for_each(|text| *text = crate::flags::named(command, text));
        }
        self
    }

    pub(crate) fn code(&self) -> Code {
        self.code
    }

    /// One stable word that says why.
    pub(crate) fn reason(&self) -> &str {
        &self.reason
    }

    /// Whether the server said that it is a thing of this kind that does not exist.
    pub(crate) fn is_missing(&self, kind: &str) -> bool {
        self.missing.as_deref() == Some(kind)
    }

    /// Whether the same call can succeed a moment later: nobody was there, or nobody answered.
    pub(crate) fn may_pass(&self) -> bool {
        matches!(self.code, Code::Unavailable | Code::DeadlineExceeded)
    }

    /// The same failure in the words of what was waited for. That the time ended is not worth a
    /// cause; that nobody answered is.
    pub(crate) fn within(self, reason: &str, message: String) -> Self {
        let failure = Self::new(self.code, reason, message);
        if self.code == Code::DeadlineExceeded {
            return failure;
        }
        let failure = failure.cause(format!("{} ({})", self.message, self.reason));
        self.causes.into_iter().fold(failure, Self::cause)
    }

    /// The exit code, by the table of `sgctl --help`.
    pub(crate) fn exit_code(&self) -> u8 {
        match self.finding {
            true => 7,
            false => exit_code(self.code),
        }
    }

    /// For a person.
    pub(crate) fn text(&self) -> String {
        let mut text = format!("error: {} ({})\n", self.message, self.reason);
        for cause in &self.causes {
            let (first, rest) = cause
                .split_once('\n')
                .map_or((cause.as_str(), None), |(f, r)| (f, Some(r)));
            text.push_str(&format!("cause: {first}\n"));
            for line in rest.into_iter().flat_map(str::lines) {
                text.push_str(&format!("       {line}\n"));
            }
        }
        if let Some(hint) = &self.hint {
            text.push_str(&format!("try: {hint}\n"));
        }
        text
    }

    /// For a script: one JSON object.
    pub(crate) fn json(&self) -> String {
        #[derive(Serialize)]
        struct Object<'a> {
            code: &'static str,
            reason: &'a str,
            message: &'a str,
            causes: &'a [String],
            #[serde(skip_serializing_if = "Option::is_none")]
            help: Option<&'a str>,
        }
        let object = Object {
            code: word(self.code),
            reason: &self.reason,
            message: &self.message,
            causes: &self.causes,
            help: self.hint.as_deref(),
        };
        serde_json::to_string_pretty(&object).unwrap_or_else(|_| "{}".to_owned())
    }
}

impl From<sg_model::Invalid> for Failure {
    fn from(invalid: sg_model::Invalid) -> Self {
        Self::new(
            Code::InvalidArgument,
            "INVALID_ARGUMENT",
            invalid.to_string(),
        )
    }
}

/// The exit code for each way a call can end. 7, a check that found problems, is kept free: no
/// command of this version checks anything.
fn exit_code(code: Code) -> u8 {
    match code {
        Code::Ok => 0,
        Code::InvalidArgument | Code::OutOfRange => 2,
        Code::NotFound => 3,
        Code::Unauthenticated | Code::PermissionDenied => 4,
        Code::AlreadyExists | Code::Aborted | Code::FailedPrecondition => 5,
        Code::Unavailable | Code::DeadlineExceeded => 6,
        Code::Cancelled
        | Code::Unknown
        | Code::ResourceExhausted
        | Code::Unimplemented
        | Code::Internal
        | Code::DataLoss => 1,
    }
}

/// The canonical word for a code, as in the JSON of `google.rpc.Code`.
fn word(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn the_exit_codes_are_those_of_the_documentation() {
        let table = [
            (Code::Unknown, 1),
            (Code::Internal, 1),
            (Code::Unimplemented, 1),
            (Code::InvalidArgument, 2),
            (Code::NotFound, 3),
            (Code::Unauthenticated, 4),
            (Code::PermissionDenied, 4),
            (Code::AlreadyExists, 5),
            (Code::Aborted, 5),
            (Code::FailedPrecondition, 5),
            (Code::Unavailable, 6),
            (Code::DeadlineExceeded, 6),
        ];
        for (code, exit) in table {
            assert_eq!(Failure::new(code, "X", "x").exit_code(), exit, "{code:?}");
        }
    }

    #[test]
    fn details_of_the_server_reach_the_reader_once() {
        let mut details = ErrorDetails::with_error_info("INVALID_FIELD", "secure-gateway", []);
        details.add_bad_request_violation("resource_port", "must be 1 to 65535");
        let status = Status::with_error_details(
            Code::InvalidArgument,
            "the destination is not valid",
            details,
        );
        let failure = Failure::from_status(&status);
        assert_eq!(
            failure.text(),
            "error: the destination is not valid (INVALID_FIELD)\n\
             cause: resource_port: must be 1 to 65535\n"
        );
        assert!(failure.json().contains("\"reason\": \"INVALID_FIELD\""));
    }

    #[test]
    fn a_long_cause_is_indented_and_the_first_hint_stays() {
        let failure = Failure::usage("no").cause("one\ntwo").hint("a").hint("b");
        assert_eq!(
            failure.text(),
            "error: no (USAGE)\ncause: one\n       two\ntry: a\n"
        );
    }
}
