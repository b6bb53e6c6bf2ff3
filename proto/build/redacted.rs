//! Writes `Debug` for every message that carries a secret, so that no log and no error can show it. What a secret is,
//! is told by the name of its field; a test in `src/debug.rs` goes over all messages with a list of its own.

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};

/// A field whose name holds one of these words is a secret, if it is text or bytes.
const WORDS: [&str; 4] = ["token", "key", "secret", "password"];

/// Texts that only look like secrets.
const HARMLESS: [&str; 4] = [
    "page_token",
    "next_page_token",
    "token_expiry",
    "public_key_der",
];

/// Secrets whose names do not say so: PEM of a key, parts of encoded destinations with their keys, a proof that opens a
/// tunnel, the hash of a token.
const OTHERS: [&str; 4] = [
    "securegateway.v1.CertificateFile.content",
    "securegateway.tunnel.v1.Piece.data",
    "securegateway.tunnel.v1.ResumeOffer.proof",
    "securegateway.node.v1.TokenHash.sha256",
];

/// What is generated for a set of files.
pub(crate) struct Redacted {
    /// Full names of the messages for which no `Debug` is to be derived.
    pub(crate) messages: Vec<String>,
    /// Their `Debug`.
    pub(crate) code: String,
    /// All messages: a list of their names and of functions from their bytes to their `Debug`, for the test.
    pub(crate) table: String,
}

/// Looks at all messages.
pub(crate) fn of(files: &FileDescriptorSet) -> Redacted {
    let mut redacted = Redacted {
        messages: Vec::new(),
        code: String::new(),
        table: "&[\n".to_owned(),
    };
    for file in &files.file {
        let package = file.package();
        if !package.starts_with("securegateway.") {
            continue;
        }
        for message in &file.message_type {
            assert!(
                message.nested_type.is_empty(),
                "messages inside of messages would be overlooked"
            );
            let full = format!("{package}.{}", message.name());
            let module = package
                .trim_start_matches("securegateway.")
                .replace('.', "::");
            let path = format!("crate::generated::{module}::{}", message.name());
            let row = format!(
                "    ({full:?}, |bytes| Ok(format!(\"{{:?}}\", <{path} as prost::Message>::decode(bytes)?))),\n"
            );
            redacted.table.push_str(&row);
            if message.field.iter().any(|field| is_secret(&full, field)) {
                redacted.code.push_str(&debug(&full, &path, message));
                redacted.messages.push(full);
            }
        }
    }
    redacted.table.push_str("]\n");
    redacted
}

fn is_secret(message: &str, field: &FieldDescriptorProto) -> bool {
    let name = field.name();
    let words = name.split('_').any(|part| WORDS.contains(&part));
    let holds = matches!(field.r#type(), Type::String | Type::Bytes);
    let harmless = HARMLESS.contains(&name);
    holds && (words && !harmless || OTHERS.contains(&format!("{message}.{name}").as_str()))
}

fn debug(full: &str, path: &str, message: &DescriptorProto) -> String {
    let mut fields = String::new();
    for field in &message.field {
        assert!(
            field.oneof_index.is_none(),
            "{full}: a choice beside a secret is not thought of"
        );
        let name = field.name();
        let shown = if is_secret(full, field) {
            format!("&crate::debug::hidden(self.{name}.is_empty())")
        } else if field.r#type() == Type::Bytes && field.label() == Label::Repeated {
            format!("&crate::debug::Lengths(self.{name}.iter().map(Vec::len).collect())")
        } else {
            format!("&self.{name}")
        };
        fields.push_str(&format!("            .field({name:?}, {shown})\n"));
    }
    format!(
        "impl std::fmt::Debug for {path} {{\n    \
             fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {{\n        \
                 f.debug_struct({:?})\n{fields}            .finish()\n    }}\n}}\n",
        message.name()
    )
}
