//! Requests that break the rules or that two readers could read differently, byte for byte: what the user is
//! told, and what reaches a resource that keeps everything.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::rig::{Chain, Setup, read_to_end};

/// What may reach the resource.
#[derive(Clone, Copy, PartialEq)]
enum Reaches {
    /// Not one byte.
    Nothing,
    /// A head, because its body was refused later; never the end of a message.
    Unfinished,
}

struct Case {
    name: &'static str,
    bytes: Vec<u8>,
    status: u16,
    reaches: Reaches,
}

fn case(name: &'static str, bytes: impl AsRef<[u8]>) -> Case {
    Case {
        name,
        bytes: bytes.as_ref().to_vec(),
        status: 400,
        reaches: Reaches::Nothing,
    }
}

/// A whole GET whose headers end with these lines.
fn header(name: &'static str, lines: impl AsRef<[u8]>) -> Case {
    let mut bytes = b"GET / HTTP/1.1\r\nHost: a.test\r\n".to_vec();
    bytes.extend_from_slice(lines.as_ref());
    bytes.extend_from_slice(b"\r\n\r\n");
    case(name, bytes)
}

/// A whole POST with these header lines and this body.
fn post(name: &'static str, lines: &str, body: impl AsRef<[u8]>) -> Case {
    let mut bytes = format!("POST / HTTP/1.1\r\nHost: a.test\r\n{lines}\r\n\r\n").into_bytes();
    bytes.extend_from_slice(body.as_ref());
    case(name, bytes)
}

/// A chunked POST with this body.
fn chunked(name: &'static str, body: impl AsRef<[u8]>) -> Case {
    Case {
        reaches: Reaches::Unfinished,
        ..post(name, "Transfer-Encoding: chunked", body)
    }
}

fn with_status(case: Case, status: u16) -> Case {
    Case { status, ..case }
}

const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: a.test\r\n\r\n";

fn lengths_and_encodings() -> Vec<Case> {
    let after = |body: &str| format!("{body}{SMUGGLED}");
    vec![
        post(
            "CL and TE",
            "Content-Length: 4\r\nTransfer-Encoding: chunked",
            after("0\r\n\r\n"),
        ),
        post(
            "TE and CL",
            "Transfer-Encoding: chunked\r\nContent-Length: 5",
            after("0\r\n\r\n"),
        ),
        post(
            "CL 0 and TE",
            "Content-Length: 0\r\nTransfer-Encoding: chunked",
            after("0\r\n\r\n"),
        ),
        post(
            "two CL that differ",
            "Content-Length: 5\r\nContent-Length: 6",
            "abcdef",
        ),
        post(
            "two equal CL",
            "Content-Length: 5\r\nContent-Length: 5",
            "abcde",
        ),
        post(
            "two CL, other case",
            "Content-Length: 5\r\ncontent-LENGTH: 0",
            "abcde",
        ),
        post("CL list", "Content-Length: 5, 5", "abcde"),
        post("CL list that differs", "Content-Length: 5,6", "abcde"),
        post("CL plus", "Content-Length: +5", "abcde"),
        post("CL minus", "Content-Length: -5", "abcde"),
        post("CL minus zero", "Content-Length: -0", ""),
        post("CL hex", "Content-Length: 0x5", "abcde"),
        post("CL hex letters", "Content-Length: A", "abcdefghij"),
        post("CL underscore", "Content-Length: 1_0", "abcdefghij"),
        post("CL with blank inside", "Content-Length: 1 0", "abcdefghij"),
        post("CL with tab", "Content-Length:\t5", "abcde"),
        post("CL with tab after", "Content-Length: 5\t", "abcde"),
        post("CL empty", "Content-Length:", "abcde"),
        post("CL blank", "Content-Length:   ", "abcde"),
        post("CL fraction", "Content-Length: 5.0", "abcde"),
        post("CL exponent", "Content-Length: 1e1", "abcdefghij"),
        post(
            "CL overflows 64 bits",
            "Content-Length: 18446744073709551621",
            "abcde",
        ),
        post(
            "CL overflows",
            "Content-Length: 99999999999999999999999",
            "abcde",
        ),
        post("CL quoted", "Content-Length: \"5\"", "abcde"),
        post("CL semicolon", "Content-Length: 5;q=1", "abcde"),
        post(
            "CL with underscore in its name",
            "Content_Length: 5",
            "abcde",
        ),
        post("CL with other digits", "Content-Length: \u{0665}", "abcde"),
        post("TE gzip", "Transfer-Encoding: gzip", "abc"),
        post("TE identity", "Transfer-Encoding: identity", "abc"),
        post(
            "TE gzip, chunked",
            "Transfer-Encoding: gzip, chunked",
            after("0\r\n\r\n"),
        ),
        post(
            "TE chunked, gzip",
            "Transfer-Encoding: chunked, gzip",
            after("0\r\n\r\n"),
        ),
        post(
            "TE chunked, identity",
            "Transfer-Encoding: chunked, identity",
            after("0\r\n\r\n"),
        ),
        post(
            "TE chunked twice",
            "Transfer-Encoding: chunked, chunked",
            after("0\r\n\r\n"),
        ),
        post(
            "TE in two lines",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            after("0\r\n\r\n"),
        ),
        post(
            "TE in two lines that differ",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: x",
            after("0\r\n\r\n"),
        ),
        post(
            "TE xchunked",
            "Transfer-Encoding: xchunked",
            after("0\r\n\r\n"),
        ),
        post(
            "TE chunkedx",
            "Transfer-Encoding: chunkedx",
            after("0\r\n\r\n"),
        ),
        post(
            "TE capital",
            "Transfer-Encoding: Chunked",
            after("0\r\n\r\n"),
        ),
        post(
            "TE capitals",
            "Transfer-Encoding: CHUNKED",
            after("0\r\n\r\n"),
        ),
        post(
            "TE quoted",
            "Transfer-Encoding: \"chunked\"",
            after("0\r\n\r\n"),
        ),
        post(
            "TE tab before",
            "Transfer-Encoding:\tchunked",
            after("0\r\n\r\n"),
        ),
        post(
            "TE tab after",
            "Transfer-Encoding: chunked\t",
            after("0\r\n\r\n"),
        ),
        post(
            "TE vertical tab",
            "Transfer-Encoding: \x0bchunked",
            after("0\r\n\r\n"),
        ),
        post(
            "TE comma before",
            "Transfer-Encoding: ,chunked",
            after("0\r\n\r\n"),
        ),
        post(
            "TE comma after",
            "Transfer-Encoding: chunked,",
            after("0\r\n\r\n"),
        ),
        post(
            "TE parameter",
            "Transfer-Encoding: chunked;x=y",
            after("0\r\n\r\n"),
        ),
        post("TE empty", "Transfer-Encoding:", after("0\r\n\r\n")),
        post(
            "TE with underscore in its name",
            "Transfer_Encoding: chunked",
            after("0\r\n\r\n"),
        ),
        post(
            "TE and blank before colon",
            "Transfer-Encoding : chunked",
            after("0\r\n\r\n"),
        ),
        post(
            "TE folded",
            "Transfer-Encoding:\r\n chunked",
            after("0\r\n\r\n"),
        ),
        post(
            "TE behind an odd name",
            "X: y\r\n Transfer-Encoding: chunked",
            after("0\r\n\r\n"),
        ),
        post(
            "TE behind a bare LF",
            "X: y\nTransfer-Encoding: chunked",
            after("0\r\n\r\n"),
        ),
        post(
            "TE behind a bare CR",
            "X: y\rTransfer-Encoding: chunked",
            after("0\r\n\r\n"),
        ),
        post(
            "TE not ASCII",
            "Transfer-Encoding: chunked\u{a0}",
            after("0\r\n\r\n"),
        ),
        case(
            "TE in HTTP/1.0",
            format!(
                "POST / HTTP/1.0\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{SMUGGLED}"
            ),
        ),
        case(
            "TE in HTTP/1.0 kept alive",
            format!(
                "POST / HTTP/1.0\r\nHost: a.test\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{SMUGGLED}"
            ),
        ),
        case(
            "CL and TE in HTTP/1.0",
            format!(
                "POST / HTTP/1.0\r\nHost: a.test\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{SMUGGLED}"
            ),
        ),
    ]
}

fn lines_and_characters() -> Vec<Case> {
    vec![
        case("bare LF everywhere", "GET / HTTP/1.1\nHost: a.test\n\n"),
        case(
            "bare LF after the request line",
            "GET / HTTP/1.1\nHost: a.test\r\n\r\n",
        ),
        case(
            "bare LF after a header",
            "GET / HTTP/1.1\r\nHost: a.test\nX: y\r\n\r\n",
        ),
        case("bare LF at the end", "GET / HTTP/1.1\r\nHost: a.test\r\n\n"),
        case("LF CR", "GET / HTTP/1.1\n\rHost: a.test\n\r\n\r"),
        case(
            "bare CR after the request line",
            "GET / HTTP/1.1\rHost: a.test\r\n\r\n",
        ),
        case("bare CR everywhere", "GET / HTTP/1.1\rHost: a.test\r\r"),
        case("CR CR LF", "GET / HTTP/1.1\r\r\nHost: a.test\r\n\r\n"),
        header("bare CR in a value", "X: a\rb"),
        header(
            "bare CR before a smuggled header",
            "X: a\rContent-Length: 5",
        ),
        header("CR at the end of a value", "X: a\r"),
        header("folded value", "X: a\r\n b"),
        header("folded with a tab", "X: a\r\n\tb"),
        header("folded nothing", "X: a\r\n "),
        case(
            "fold before the first header",
            "GET / HTTP/1.1\r\n Host: a.test\r\n\r\n",
        ),
        case(
            "tab before the first header",
            "GET / HTTP/1.1\r\n\tHost: a.test\r\n\r\n",
        ),
        header("space before the colon", "X : a"),
        header("tab before the colon", "X\t: a"),
        header("space in a name", "X Y: a"),
        header("no colon", "X"),
        header("no name", ": a"),
        header("colon only", ":"),
        header("NUL in a value", b"X: a\0b"),
        header("NUL in a name", b"X\0: a"),
        header("NUL at the end", b"X: a\0"),
        header("bell", b"X: a\x07b"),
        header("backspace", b"X: a\x08b"),
        header("vertical tab", b"X: a\x0bb"),
        header("form feed", b"X: a\x0cb"),
        header("escape", b"X: \x1b[31m"),
        header("DEL", b"X: a\x7fb"),
        header("DEL in a name", b"X\x7f: a"),
        header("parenthesis in a name", "X(y): a"),
        header("comma in a name", "X,y: a"),
        header("slash in a name", "X/y: a"),
        header("at in a name", "X@y: a"),
        header("bracket in a name", "X[y]: a"),
        header("quote in a name", "\"X\": a"),
        header("equals in a name", "X=y: a"),
        header("semicolon in a name", "X;y: a"),
        header("braces in a name", "{X}: a"),
        header("backslash in a name", "X\\y: a"),
        header("angle in a name", "<X>: a"),
        header("question mark in a name", "X?: a"),
        header("name that is not ASCII", "X\u{e9}: a"),
        header("no-break space in a name", "X\u{a0}: a"),
        header("name in UTF-16", b"\xff\xfeX: a"),
        case(
            "two empty lines first",
            "\r\n\r\nGET / HTTP/1.1\r\nHost: a.test\r\n\r\n",
        ),
        case("bare LF first", "\nGET / HTTP/1.1\r\nHost: a.test\r\n\r\n"),
        case("space first", " GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"),
        case("NUL first", b"\0GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"),
        case(
            "byte order mark first",
            "\u{feff}GET / HTTP/1.1\r\nHost: a.test\r\n\r\n",
        ),
        case(
            "TLS",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03aaaa\r\n\r\n",
        ),
        case("head without end", "GET / HTTP/1.1\r\nHost: a.test\r\n"),
        case("head that ends in a line", "GET / HTTP/1.1\r\nHost: a.te"),
    ]
}

fn request_lines() -> Vec<Case> {
    let line = |name, line: &str| case(name, format!("{line}\r\nHost: a.test\r\n\r\n"));
    vec![
        case("HTTP/0.9", "GET /\r\n"),
        case("HTTP/0.9 with a header", "GET /\r\nHost: a.test\r\n\r\n"),
        line("no version", "GET / "),
        line("version 0.9", "GET / HTTP/0.9"),
        line("version 1.2", "GET / HTTP/1.2"),
        line("version 2.0", "GET / HTTP/2.0"),
        line("version 11", "GET / HTTP/11"),
        line("version 1.10", "GET / HTTP/1.10"),
        line("version 1.01", "GET / HTTP/1.01"),
        line("version 01.1", "GET / HTTP/01.1"),
        line("version +1.1", "GET / HTTP/+1.1"),
        line("version in small letters", "GET / http/1.1"),
        line("version with blank", "GET / HTTP/ 1.1"),
        line("version of another protocol", "GET / RTSP/1.1"),
        line("version with rest", "GET / HTTP/1.1x"),
        line("two spaces after the method", "GET  / HTTP/1.1"),
        line("two spaces before the version", "GET /  HTTP/1.1"),
        line("space at the end", "GET / HTTP/1.1 "),
        line("tab after the method", "GET\t/ HTTP/1.1"),
        line("tab before the version", "GET /\tHTTP/1.1"),
        line("tab at the end", "GET / HTTP/1.1\t"),
        line("vertical tab", "GET\x0b/ HTTP/1.1"),
        line("space in the target", "GET /a b HTTP/1.1"),
        line("second request in the target", "GET / HTTP/1.1 HTTP/1.1"),
        line("no target", "GET HTTP/1.1"),
        line("empty target", "GET  HTTP/1.1"),
        line("no method", " / HTTP/1.1"),
        line("colon in the method", "GET: / HTTP/1.1"),
        line("brackets in the method", "GET[] / HTTP/1.1"),
        line("method not ASCII", "G\u{c9}T / HTTP/1.1"),
        line("target not ASCII", "GET /\u{e9} HTTP/1.1"),
        line("NUL in the target", "GET /a\0b HTTP/1.1"),
        line("DEL in the target", "GET /a\x7fb HTTP/1.1"),
        line("CR in the target", "GET /a\rb HTTP/1.1"),
        line("fragment", "GET /a#b HTTP/1.1"),
        line("fragment only", "GET # HTTP/1.1"),
        line("fragment in a URI", "GET http://a.test/#b HTTP/1.1"),
        line("relative target", "GET a HTTP/1.1"),
        line("relative target with dots", "GET ../a HTTP/1.1"),
        line("query without path", "GET ?a HTTP/1.1"),
        line("asterisk for GET", "GET * HTTP/1.1"),
        line("asterisk with rest", "OPTIONS *a HTTP/1.1"),
        line("authority as target", "GET a.test:80 HTTP/1.1"),
        line("URI of another host", "GET http://b.test/ HTTP/1.1"),
        line("URI with another port", "GET http://a.test:81/ HTTP/1.1"),
        line("URI with a user name", "GET http://a.test@b.test/ HTTP/1.1"),
        line(
            "URI with the right host as user",
            "GET http://u@a.test/ HTTP/1.1",
        ),
        line("URI with an empty user", "GET http://@a.test/ HTTP/1.1"),
        line("URI without host", "GET http:/// HTTP/1.1"),
        line("URI with an empty host", "GET http://:80/ HTTP/1.1"),
        line("URI of another scheme", "GET ftp://a.test/ HTTP/1.1"),
        line("file URI", "GET file:///etc/passwd HTTP/1.1"),
        line("URI with port 0", "GET http://a.test:0/ HTTP/1.1"),
        line("URI with an empty port", "GET http://a.test:/ HTTP/1.1"),
        with_status(line("CONNECT", "CONNECT a.test:443 HTTP/1.1"), 405),
        with_status(line("CONNECT with a path", "CONNECT / HTTP/1.1"), 405),
        case("preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    ]
}

fn hosts() -> Vec<Case> {
    let host = |name, lines: &str| case(name, format!("GET / HTTP/1.1\r\n{lines}\r\n\r\n"));
    vec![
        host("no Host", "X: y"),
        host("two Hosts", "Host: a.test\r\nHost: b.test"),
        host("two equal Hosts", "Host: a.test\r\nHost: a.test"),
        host("two Hosts, other case", "Host: a.test\r\nhOST: b.test"),
        case(
            "two Hosts in HTTP/1.0",
            "GET / HTTP/1.0\r\nHost: a.test\r\nHost: b.test\r\n\r\n",
        ),
        host("Host empty", "Host:"),
        host("Host blank", "Host:  "),
        host("Host with user", "Host: u@a.test"),
        host("Host with path", "Host: a.test/b"),
        host("Host with query", "Host: a.test?b"),
        host("Host with fragment", "Host: a.test#b"),
        host(
            "Host of 300 characters",
            &format!("Host: {}", "a".repeat(300)),
        ),
        host("Host list", "Host: a.test, b.test"),
        host("Host with blank", "Host: a.test b.test"),
        host("Host with tab", "Host: a.test\tb.test"),
        host("Host with backslash", "Host: a.test\\b"),
        host("Host with a port that is none", "Host: a.test:x"),
        host("Host with port 0", "Host: a.test:0"),
        host("Host with port 65536", "Host: a.test:65536"),
        host("Host with two ports", "Host: a.test:80:81"),
        host("Host with empty port", "Host: a.test:"),
        host("Host with port only", "Host: :80"),
        host("Host as URI", "Host: http://a.test"),
        host("Host of bare IPv6", "Host: ::1"),
        host("Host of broken IPv6", "Host: [::1"),
        host("Host of no IPv6", "Host: [a.test]"),
        host("Host not ASCII", "Host: \u{e9}.test"),
        host("Host in quotes", "Host: \"a.test\""),
        host("Host in angle brackets", "Host: <a.test>"),
        host("Connection names Host", "Host: a.test\r\nConnection: Host"),
        host(
            "Connection names Host among others",
            "Host: a.test\r\nConnection: close, hOsT",
        ),
        host(
            "Connection names Content-Length",
            "Host: a.test\r\nContent-Length: 0\r\nConnection: content-length",
        ),
        host(
            "Connection names Transfer-Encoding",
            "Host: a.test\r\nConnection: transfer-encoding",
        ),
        host(
            "Connection names X-Forwarded-For",
            "Host: a.test\r\nConnection: X-Forwarded-For",
        ),
        host(
            "Connection names X-Forwarded-Host",
            "Host: a.test\r\nConnection: close, x-forwarded-host",
        ),
        host(
            "Connection names Forwarded",
            "Host: a.test\r\nConnection: forwarded",
        ),
        host(
            "Connection names Authorization",
            "Host: a.test\r\nAuthorization: Basic eA==\r\nConnection: authorization",
        ),
        host(
            "Connection names Cookie",
            "Host: a.test\r\nCookie: a=b\r\nConnection: cookie",
        ),
        host(
            "Connection names Content-Type",
            "Host: a.test\r\nConnection: content-type",
        ),
        host(
            "second Connection line names Host",
            "Host: a.test\r\nConnection: close\r\nConnection: host",
        ),
        with_status(
            host("Expect something else", "Host: a.test\r\nExpect: 200-ok"),
            417,
        ),
    ]
}

fn chunks() -> Vec<Case> {
    let long = format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(10_000));
    let many = format!(
        "{}0\r\n\r\n",
        format!("1;{}\r\na\r\n", "x".repeat(100)).repeat(100)
    );
    let trailers = format!("0\r\nX: {}\r\n\r\n", "y".repeat(20_000));
    vec![
        chunked("size plus", "+5\r\nabcde\r\n0\r\n\r\n"),
        chunked("size minus", "-5\r\nabcde\r\n0\r\n\r\n"),
        chunked("size 0x", "0x5\r\nabcde\r\n0\r\n\r\n"),
        chunked("size underscore", "1_0\r\nabcdefghijklmnop\r\n0\r\n\r\n"),
        chunked("size space before", " 5\r\nabcde\r\n0\r\n\r\n"),
        chunked("size space after", "5 \r\nabcde\r\n0\r\n\r\n"),
        chunked("size tab after", "5\t\r\nabcde\r\n0\r\n\r\n"),
        chunked("size space before extension", "5 ;x\r\nabcde\r\n0\r\n\r\n"),
        chunked("size not hex", "g\r\nabcde\r\n0\r\n\r\n"),
        chunked("size empty", "\r\nabcde\r\n0\r\n\r\n"),
        chunked("size only an extension", ";x\r\nabcde\r\n0\r\n\r\n"),
        chunked("size quoted", "\"5\"\r\nabcde\r\n0\r\n\r\n"),
        chunked("size comma", "5,5\r\nabcde\r\n0\r\n\r\n"),
        chunked(
            "size with many zeros",
            "00000000000000005\r\nabcde\r\n0\r\n\r\n",
        ),
        chunked(
            "size beyond 64 bits",
            "10000000000000005\r\nabcde\r\n0\r\n\r\n",
        ),
        chunked(
            "size of 16 digits that overflows later",
            "fffffffffffffff0\r\nabcde\r\n0\r\n\r\n",
        ),
        chunked("size NUL", b"5\0\r\nabcde\r\n0\r\n\r\n"),
        chunked("size not ASCII", "\u{0665}\r\nabcde\r\n0\r\n\r\n"),
        chunked("bare LF after the size", "5\nabcde\r\n0\r\n\r\n"),
        chunked("bare CR after the size", "5\rabcde\r\n0\r\n\r\n"),
        chunked("bare LF after the data", "5\r\nabcde\n0\r\n\r\n"),
        chunked("nothing after the data", "5\r\nabcde0\r\n\r\n"),
        chunked("more data than said", "5\r\nabcdef\r\n0\r\n\r\n"),
        chunked("less data than said", "5\r\nabcd\r\n0\r\n\r\n"),
        chunked("two bytes after the data", "5\r\nabcdeXX0\r\n\r\n"),
        chunked("bare LF at the end", "5\r\nabcde\r\n0\r\n\n"),
        chunked("bare LF after the last size", "5\r\nabcde\r\n0\n\r\n"),
        chunked("bare LF in an extension", "5;x\ny\r\nabcde\r\n0\r\n\r\n"),
        chunked("bare CR in an extension", "5;x\ry\r\nabcde\r\n0\r\n\r\n"),
        chunked("NUL in an extension", b"5;x\0\r\nabcde\r\n0\r\n\r\n"),
        chunked("DEL in an extension", b"5;x\x7f\r\nabcde\r\n0\r\n\r\n"),
        chunked("a large extension", long),
        chunked("many extensions", many),
        chunked("large trailers", trailers),
        chunked(
            "Content-Length as trailer",
            "0\r\nContent-Length: 5\r\n\r\n",
        ),
        chunked(
            "Transfer-Encoding as trailer",
            "0\r\nTransfer-Encoding: chunked\r\n\r\n",
        ),
        chunked("Host as trailer", "0\r\nHost: b.test\r\n\r\n"),
        chunked(
            "Authorization as trailer",
            "0\r\nAuthorization: Basic eA==\r\n\r\n",
        ),
        chunked(
            "X-Forwarded-For as trailer",
            "0\r\nX-Forwarded-For: 10.0.0.1\r\n\r\n",
        ),
        chunked("folded trailer", "0\r\nX: a\r\n b\r\n\r\n"),
        chunked("space before the colon of a trailer", "0\r\nX : a\r\n\r\n"),
        chunked("trailer without colon", "0\r\nX\r\n\r\n"),
        chunked("trailer with NUL", b"0\r\nX: a\0\r\n\r\n"),
        chunked("trailer with bare LF", "0\r\nX: a\n\r\n"),
        chunked("trailer with bare CR", "0\r\nX: a\rY: b\r\n\r\n"),
        chunked("a request where trailers are", format!("0\r\n{SMUGGLED}")),
        chunked("body that breaks off in its size", "5"),
        chunked("body that breaks off in its data", "5\r\nab"),
        chunked("body that breaks off before its end", "5\r\nabcde\r\n"),
        chunked("body that breaks off in its end", "5\r\nabcde\r\n0\r\n"),
    ]
}

fn sizes() -> Vec<Case> {
    let many: String = (0..300).map(|n| format!("X{n}: y\r\n")).collect();
    vec![
        with_status(
            header(
                "a header of 70,000 bytes",
                format!("X: {}", "y".repeat(70_000)),
            ),
            431,
        ),
        with_status(
            header(
                "headers of 66,000 bytes in all",
                format!("X: {}\r\n", "y".repeat(2_000))
                    .repeat(33)
                    .trim_end(),
            ),
            431,
        ),
        with_status(header("300 headers", many.trim_end()), 431),
        with_status(
            case(
                "a target of 70,000 bytes",
                format!(
                    "GET /{} HTTP/1.1\r\nHost: a.test\r\n\r\n",
                    "a".repeat(70_000)
                ),
            ),
            431,
        ),
        with_status(
            case(
                "a method of 70,000 bytes",
                format!("{} / HTTP/1.1\r\nHost: a.test\r\n\r\n", "A".repeat(70_000)),
            ),
            431,
        ),
    ]
}

/// Sends the bytes, ends the user's direction, and tells the whole answer and all that reached the resource.
async fn drive(bytes: &[u8]) -> (String, String) {
    let Chain {
        mut user,
        mut resources,
        served,
        ..
    } = Setup::default().start();
    let arrived = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&arrived);
    let resource = tokio::spawn(async move {
        let Some(mut pipe) = resources.recv().await else {
            return;
        };
        let mut piece = [0; 4096];
        while let Ok(count @ 1..) = pipe.read(&mut piece).await {
            let whole = {
                let mut kept = kept.lock().unwrap();
                kept.extend_from_slice(&piece[..count]);
                kept.ends_with(b"\r\n\r\n")
            };
            if whole {
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                if pipe.write_all(answer).await.is_err() {
                    return;
                }
            }
        }
    });
    // The server may answer and end before it has read all.
    let _ = user.write_all(bytes).await;
    let _ = user.shutdown().await;
    let answer = match read_to_end(&mut user).await {
        Ok(answer) | Err(answer) => answer,
    };
    drop(user);
    let _ = served.await;
    resource.abort();
    let arrived = String::from_utf8_lossy(&arrived.lock().unwrap()).into_owned();
    (answer, arrived)
}

#[tokio::test]
async fn what_can_be_read_in_two_ways_is_refused_and_does_not_arrive() {
    let cases: Vec<Case> = [
        lengths_and_encodings(),
        lines_and_characters(),
        request_lines(),
        hosts(),
        chunks(),
        sizes(),
    ]
    .into_iter()
    .flatten()
    .collect();
    assert!(cases.len() >= 150, "{} cases", cases.len());
    let mut wrong = Vec::new();
    for Case {
        name,
        bytes,
        status,
        reaches,
    } in &cases
    {
        let (answer, arrived) = drive(bytes).await;
        let says = |version| answer.starts_with(&format!("HTTP/1.{version} {status} "));
        if !says(1) && !says(0) {
            wrong.push(format!("{name}: answered {answer:?}"));
        } else if !answer.contains("x-secure-gateway-error: ") {
            wrong.push(format!("{name}: an answer without a word: {answer:?}"));
        }
        let refused = match reaches {
            Reaches::Nothing => arrived.is_empty(),
            Reaches::Unfinished => !arrived.contains("0\r\n\r\n") && !arrived.contains("smuggled"),
        };
        if !refused {
            wrong.push(format!("{name}: arrived {arrived:?}"));
        }
        if answer
            .lines()
            .filter(|line| line.starts_with("HTTP/1."))
            .count()
            != 1
        {
            wrong.push(format!("{name}: more than one answer: {answer:?}"));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{}",
        wrong.len(),
        cases.len(),
        wrong.join("\n")
    );
}

#[tokio::test]
async fn the_dialling_end_refuses_the_same_by_itself() {
    // As if the accepting end were another program: its bytes go straight into the stream.
    use sg_relay::http::{HttpOptions, HttpVersion, serve_stream};
    for case in lengths_and_encodings().into_iter().chain(hosts()) {
        let (mut near, far) = crate::pipe::pipe(256 * 1024);
        let options = HttpOptions::new(&"r.test:80".parse().unwrap(), false).unwrap();
        let served = tokio::spawn(serve_stream(
            far,
            HttpVersion::Http1,
            options,
            Nowhere,
            None,
        ));
        near.write_all(&case.bytes).await.unwrap();
        near.shutdown().await.unwrap();
        let answer = read_to_end(&mut near).await.unwrap();
        assert!(
            answer.get(8..12) == Some(&format!(" {}", case.status)),
            "{}: {answer:?}",
            case.name
        );
        drop(near);
        served.await.unwrap();
    }
}

/// Nothing may ask for a connection.
struct Nowhere;

impl sg_relay::http::Upstream for Nowhere {
    type Io = crate::pipe::Pipe;

    async fn connect(
        &self,
    ) -> Result<(Self::Io, sg_relay::http::HttpVersion), sg_relay::http::Refusal> {
        panic!("a request that must be refused was let through");
    }

    fn permit(
        &self,
        _: &http::Method,
        _: &str,
    ) -> Result<Option<sg_model::CanonicalPath>, sg_relay::http::Refusal> {
        Ok(None)
    }
}

#[tokio::test]
async fn what_is_unusual_but_clear_passes() {
    let whole = |line: &str, rest: &str| format!("{line}\r\nHost: a.test\r\n{rest}\r\n");
    let cases = [
        (
            "plain",
            whole("GET /plain HTTP/1.1", ""),
            "GET /plain HTTP/1.1",
        ),
        (
            "one empty line first",
            format!("\r\n{}", whole("GET / HTTP/1.1", "")),
            "GET / HTTP/1.1",
        ),
        (
            "HTTP/1.0",
            whole("GET /old HTTP/1.0", ""),
            "GET /old HTTP/1.1",
        ),
        (
            "HTTP/1.0 without Host",
            "GET /older HTTP/1.0\r\n\r\n".into(),
            "GET /older HTTP/1.1",
        ),
        (
            "URI of the same host",
            whole("GET http://A.test:80/uri?q HTTP/1.1", ""),
            "GET /uri?q HTTP/1.1",
        ),
        (
            "URI without path",
            whole("GET http://a.test HTTP/1.1", ""),
            "GET / HTTP/1.1",
        ),
        (
            "URI with query only",
            whole("GET http://a.test?q HTTP/1.1", ""),
            "GET /?q HTTP/1.1",
        ),
        (
            "asterisk",
            whole("OPTIONS * HTTP/1.1", ""),
            "OPTIONS * HTTP/1.1",
        ),
        (
            "other method",
            whole("PROPFIND /dav HTTP/1.1", ""),
            "PROPFIND /dav HTTP/1.1",
        ),
        (
            "blanks around a value",
            whole("GET / HTTP/1.1", "X:   a b  \r\n"),
            "X: a b\r\n",
        ),
        (
            "no blank before a value",
            whole("GET / HTTP/1.1", "X:a\r\n"),
            "X: a\r\n",
        ),
        ("empty value", whole("GET / HTTP/1.1", "X:\r\n"), "X:\r\n"),
        (
            "tab in a value",
            whole("GET / HTTP/1.1", "X: a\tb\r\n"),
            "X: a\tb\r\n",
        ),
        (
            "odd name",
            whole("GET / HTTP/1.1", "!#$%&'*+-.^_`|~9: a\r\n"),
            "!#$%&'*+-.^_`|~9: a",
        ),
        (
            "encoded slash without path rules",
            whole("GET /a%2Fb HTTP/1.1", ""),
            "GET /a%2Fb HTTP/1.1",
        ),
        (
            "double slash without path rules",
            whole("GET //a HTTP/1.1", ""),
            "GET //a HTTP/1.1",
        ),
        (
            "kept case of names",
            whole("GET / HTTP/1.1", "SOAPAction: x\r\n"),
            "SOAPAction: x",
        ),
        (
            "TE that is not trailers",
            whole("GET / HTTP/1.1", "TE: gzip\r\n"),
            "GET / HTTP/1.1",
        ),
        (
            "length 0",
            whole("POST / HTTP/1.1", "Content-Length: 0\r\n"),
            "POST / HTTP/1.1",
        ),
        (
            "Host with port",
            "GET / HTTP/1.1\r\nHost: a.test:8443\r\n\r\n".into(),
            "GET / HTTP/1.1",
        ),
        (
            "Host of IPv6",
            "GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n".into(),
            "GET / HTTP/1.1",
        ),
        (
            "upgrade to h2c is an ordinary request",
            whole(
                "GET / HTTP/1.1",
                "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n",
            ),
            "GET / HTTP/1.1",
        ),
    ];
    for (name, bytes, arrives) in cases {
        let (answer, arrived) = drive(bytes.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1."), "{name}: {answer:?}");
        assert!(answer.contains(" 200 OK\r\n"), "{name}: {answer:?}");
        assert!(arrived.contains(arrives), "{name}: {arrived:?}");
        assert!(
            arrived
                .to_lowercase()
                .contains("host: resource.test:8080\r\n"),
            "{name}: {arrived:?}"
        );
        assert!(
            !arrived.to_lowercase().contains("h2c"),
            "{name}: {arrived:?}"
        );
    }
}
