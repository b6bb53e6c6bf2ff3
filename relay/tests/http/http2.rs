//! Users of HTTP/2, onto resources of both versions.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use sg_relay::http::{HttpVersion, MAX_CONNECTIONS};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::pipe::Pipe;
use crate::rig::{Chain, SOON, Setup, World};

type BoxBody = http_body_util::combinators::BoxBody<Bytes, std::io::Error>;

fn full(bytes: impl Into<Bytes>) -> BoxBody {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed()
}

/// A body that is sent from elsewhere.
fn channel() -> (mpsc::Sender<Result<Frame<Bytes>, std::io::Error>>, BoxBody) {
    let (sender, mut receiver) = mpsc::channel(1);
    let stream = futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx));
    (sender, BodyExt::boxed(StreamBody::new(stream)))
}

struct User {
    sender: SendRequest<BoxBody>,
    world: Arc<World>,
    resources: mpsc::UnboundedReceiver<Pipe>,
}

async fn user(resource: HttpVersion, forbidden: &'static str) -> User {
    let Chain {
        user,
        resources,
        world,
        ..
    } = Setup {
        user: HttpVersion::Http2,
        resource,
        forbidden,
        ..Setup::default()
    }
    .start();
    let (sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(64 * 1024)
        .handshake(TokioIo::new(user))
        .await
        .unwrap();
    tokio::spawn(connection);
    User {
        sender,
        world,
        resources,
    }
}

fn get(path: &str) -> Request<BoxBody> {
    Request::get(format!("http://shop.test{path}"))
        .body(full(""))
        .unwrap()
}

/// Serves a connection with hyper.
fn serve<F, R>(version: HttpVersion, pipe: Pipe, service: F)
where
    F: Fn(Request<Incoming>) -> R + Clone + Send + 'static,
    R: Future<Output = Response<BoxBody>> + Send + 'static,
{
    let service = hyper::service::service_fn(move |request| {
        let answer = service(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let io = TokioIo::new(pipe);
    match version {
        HttpVersion::Http1 => {
            let server = hyper::server::conn::http1::Builder::new().serve_connection(io, service);
            tokio::spawn(async move { drop(server.await) });
        }
        HttpVersion::Http2 => {
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(io, service);
            tokio::spawn(async move { drop(server.await) });
        }
    }
}

/// Serves every connection that comes.
fn serve_all<F, R>(version: HttpVersion, mut resources: mpsc::UnboundedReceiver<Pipe>, service: F)
where
    F: Fn(Request<Incoming>) -> R + Clone + Send + 'static,
    R: Future<Output = Response<BoxBody>> + Send + 'static,
{
    tokio::spawn(async move {
        while let Some(pipe) = resources.recv().await {
            serve(version, pipe, service.clone());
        }
    });
}

#[tokio::test]
async fn a_hundred_requests_at_a_time_onto_either_version() {
    for version in [HttpVersion::Http1, HttpVersion::Http2] {
        let User {
            sender,
            world,
            resources,
        } = user(version, "").await;
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let peak = Arc::clone(&most);
        serve_all(version, resources, move |request: Request<Incoming>| {
            let (now, most) = (Arc::clone(&now), Arc::clone(&most));
            async move {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(20)).await;
                now.fetch_sub(1, Ordering::SeqCst);
                let host = match request.version() {
                    http::Version::HTTP_2 => request.uri().authority().unwrap().to_string(),
                    _ => request.headers()["host"].to_str().unwrap().to_owned(),
                };
                assert_eq!(host, "resource.test:8080");
                assert_eq!(request.headers()["x-forwarded-host"], "shop.test");
                let path = request.uri().path().to_owned();
                let body = request.into_body().collect().await.unwrap().to_bytes();
                Response::new(full(format!("{path} {}", body.len())))
            }
        });
        let mut asked = tokio::task::JoinSet::new();
        for n in 0..100 {
            let mut sender = sender.clone();
            asked.spawn(async move {
                let request = Request::post(format!("http://shop.test/{n}"))
                    .body(full(vec![0; n * 1000]))
                    .unwrap();
                let answer = sender.send_request(request).await.unwrap();
                assert_eq!(answer.status(), StatusCode::OK);
                let body = answer.into_body().collect().await.unwrap().to_bytes();
                assert_eq!(body, format!("/{n} {}", n * 1000));
            });
        }
        while let Some(one) = timeout(SOON, asked.join_next()).await.unwrap() {
            one.unwrap();
        }
        assert_eq!(world.streams.load(Ordering::Relaxed), 1);
        let connections = world.connections.load(Ordering::Relaxed);
        let peak = peak.load(Ordering::SeqCst);
        match version {
            HttpVersion::Http1 => {
                assert!(
                    (2..=MAX_CONNECTIONS).contains(&connections),
                    "{connections}"
                );
                assert!(peak <= MAX_CONNECTIONS, "{peak}");
            }
            HttpVersion::Http2 => {
                assert_eq!(connections, 1);
                assert!(peak > MAX_CONNECTIONS, "{peak}");
            }
        }
    }
}

#[tokio::test]
async fn calls_with_trailers_stream_in_both_directions() {
    let User {
        mut sender,
        mut resources,
        ..
    } = user(HttpVersion::Http2, "").await;
    let (send, body) = channel();
    let request = Request::post("http://shop.test/pkg.Service/Call")
        .header("te", "trailers")
        .header("content-type", "application/grpc")
        .body(body)
        .unwrap();
    let answer = tokio::spawn(async move { sender.send_request(request).await.unwrap() });
    let pipe = timeout(SOON, resources.recv()).await.unwrap().unwrap();
    serve(
        HttpVersion::Http2,
        pipe,
        |request: Request<Incoming>| async move {
            assert_eq!(request.headers()["te"], "trailers");
            let (send, body) = channel();
            tokio::spawn(async move {
                let mut asked = request.into_body();
                while let Some(frame) = asked.frame().await {
                    let data = frame.unwrap().into_data().unwrap();
                    send.send(Ok(Frame::data(data))).await.unwrap();
                }
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", HeaderValue::from_static("0"));
                send.send(Ok(Frame::trailers(trailers))).await.unwrap();
            });
            Response::new(body)
        },
    );
    let mut answer = timeout(SOON, answer).await.unwrap().unwrap().into_body();
    for n in 0..1000_u32 {
        let message = Bytes::from(format!("message {n}"));
        send.send(Ok(Frame::data(message.clone()))).await.unwrap();
        let echo = timeout(SOON, answer.frame())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        assert_eq!(echo.into_data().unwrap(), message);
    }
    drop(send);
    let trailers = timeout(SOON, answer.frame())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!(trailers.into_trailers().unwrap()["grpc-status"], "0");
}

#[tokio::test]
async fn a_reset_of_one_exchange_passes_and_leaves_the_others_alone() {
    for version in [HttpVersion::Http1, HttpVersion::Http2] {
        let User {
            mut sender,
            resources,
            world,
        } = user(version, "").await;
        let (gone, mut left) = mpsc::channel(1);
        serve_all(version, resources, move |request: Request<Incoming>| {
            let gone = gone.clone();
            async move {
                match request.uri().path() {
                    "/dies" => {
                        let (send, body) = channel();
                        tokio::spawn(async move {
                            send.send(Ok(Frame::data(Bytes::from("half"))))
                                .await
                                .unwrap();
                            tokio::time::sleep(Duration::from_millis(50)).await;
                            let _ = send.send(Err(std::io::Error::other("dead"))).await;
                        });
                        Response::new(body)
                    }
                    "/endless" => {
                        let (send, body) = channel();
                        tokio::spawn(async move {
                            send.send(Ok(Frame::data(Bytes::from("first"))))
                                .await
                                .unwrap();
                            send.closed().await;
                            gone.send(()).await.unwrap();
                        });
                        Response::new(body)
                    }
                    _ => Response::new(full("fine")),
                }
            }
        });
        // The resource dies in its answer.
        let answer = sender.send_request(get("/dies")).await.unwrap();
        assert!(
            timeout(SOON, answer.into_body().collect())
                .await
                .unwrap()
                .is_err()
        );
        // The user leaves an answer.
        let answer = sender.send_request(get("/endless")).await.unwrap();
        let mut body = answer.into_body();
        body.frame().await.unwrap().unwrap();
        let reset = Instant::now();
        drop(body);
        timeout(Duration::from_secs(2), left.recv())
            .await
            .expect("freed in time")
            .unwrap();
        assert!(reset.elapsed() < Duration::from_secs(2));
        // All else goes on.
        let answer = timeout(SOON, sender.send_request(get("/fine")))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(
            answer.into_body().collect().await.unwrap().to_bytes(),
            "fine"
        );
        assert_eq!(world.streams.load(Ordering::Relaxed), 1);
    }
}

#[tokio::test]
async fn what_is_refused_has_the_same_answers() {
    let User {
        mut sender,
        mut resources,
        ..
    } = user(HttpVersion::Http2, "/admin").await;
    let mut ask = async |request: Request<BoxBody>| {
        let answer = timeout(SOON, sender.send_request(request))
            .await
            .unwrap()
            .unwrap();
        let word = answer.headers().get("x-secure-gateway-error").cloned();
        (
            answer.status().as_u16(),
            word.map(|word| word.to_str().unwrap().to_owned()),
        )
    };
    let bad = |word: &str, status| (status, Some(word.to_owned()));
    let other = |name, value: &str| {
        let mut request = get("/a");
        request
            .headers_mut()
            .append(name, HeaderValue::from_str(value).unwrap());
        request
    };
    assert_eq!(ask(get("/x/../admin")).await, bad("acl-denied", 403));
    assert_eq!(ask(get("/a%2fb")).await, bad("bad-request", 400));
    assert_eq!(
        ask(other("host", "other.test")).await,
        bad("bad-request", 400)
    );
    let user = Request::get("http://u@shop.test/").body(full("")).unwrap();
    assert_eq!(ask(user).await, bad("bad-request", 400));
    assert_eq!(ask(other("expect", "x")).await, bad("bad-expectation", 417));
    let connect = Request::connect("shop.test:443").body(full("")).unwrap();
    assert_eq!(ask(connect).await, bad("method-not-allowed", 405));
    assert!(resources.try_recv().is_err(), "something was let through");
}

#[tokio::test]
async fn a_large_body_streams_while_other_requests_pass() {
    let User {
        mut sender,
        resources,
        ..
    } = user(HttpVersion::Http2, "").await;
    serve_all(
        HttpVersion::Http2,
        resources,
        |request: Request<Incoming>| async move {
            match request.uri().path() {
                "/big" => {
                    let (send, body) = channel();
                    tokio::spawn(async move {
                        for _ in 0..1024 {
                            send.send(Ok(Frame::data(Bytes::from(vec![0; 64 * 1024]))))
                                .await
                                .unwrap();
                        }
                    });
                    Response::new(body)
                }
                _ => Response::new(full("fine")),
            }
        },
    );
    // Answers that nobody reads take no more than their own share.
    let mut stopped = Vec::new();
    for _ in 0..4 {
        stopped.push(sender.send_request(get("/big")).await.unwrap());
    }
    let answer = timeout(SOON, sender.send_request(get("/fine")))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        answer.into_body().collect().await.unwrap().to_bytes(),
        "fine"
    );
    let mut body = sender.send_request(get("/big")).await.unwrap().into_body();
    let mut read = 0;
    while let Some(frame) = timeout(SOON, body.frame()).await.unwrap() {
        read += frame.unwrap().into_data().map_or(0, |data| data.len());
    }
    assert_eq!(read, 64 << 20);
}

#[tokio::test]
async fn cookies_in_pieces_are_one_for_http1() {
    let User {
        mut sender,
        resources,
        ..
    } = user(HttpVersion::Http1, "").await;
    serve_all(
        HttpVersion::Http1,
        resources,
        |request: Request<Incoming>| async move {
            assert_eq!(request.headers().get_all("cookie").iter().count(), 1);
            Response::new(full(request.headers()["cookie"].as_bytes().to_vec()))
        },
    );
    let mut request = get("/");
    for cookie in ["a=b", "c=d"] {
        request
            .headers_mut()
            .append("cookie", HeaderValue::from_static(cookie));
    }
    let answer = timeout(SOON, sender.send_request(request))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        answer.into_body().collect().await.unwrap().to_bytes(),
        "a=b; c=d"
    );
}
