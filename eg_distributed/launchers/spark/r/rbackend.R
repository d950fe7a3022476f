# A client of Spark's RBackend, the JVM half of SparkR that every Spark has: base R alone, for nodes without SparkR.
#
# What goes over the connection is SparkR's own protocol. Interrupts come where a call waits for its answer's first byte, and
# nowhere else, so that none tears a message apart. An interrupt cancels the session's jobs over a second connection and reads
# the answer to its end; the session goes on.
#
# Sourced into an environment of its own by spark_r.R, together with rbackend_wire.R.

.first_look <- 3 # seconds that a call goes on before it is looked for its tasks, each second
.idle <- 10 # seconds without a single task under way after which it is said that nothing moves
.grace <- 5 # seconds that a call has to end after its jobs were cancelled, before its connection is given up
.again <- 0.5 # seconds between two cancellations meanwhile
.chunk <- 262144L
.piece <- 16384L
.max_error_lines <- 12L

# port and secret, once start() has waited for the JVM; ended(): why there is none any more ("" while there is); ask(), asked(),
# news(): before, after and while a session is made; explain(text): what Spark's words for its failure mean; stuck(ever, driver,
# reasons): say that no task runs.
backend <- new.env()
backend$main <- NULL # the connection that calls go over
backend$control <- NULL # the one that cancels
backend$context <- NULL # the SparkContext's id, once there is one
backend$garbage <- character()
backend$failure <- "" # all that Spark said of the call that failed last, unless one has succeeded since

# -- connections ---------------------------------------------------------------------------------------------------------------

.open <- function() {
  backend$start()
  socket <- tryCatch(
    socketConnection("localhost", backend$port, blocking = FALSE, open = "r+b", timeout = 30),
    error = function(e) NULL, warning = function(e) NULL
  )
  if (is.null(socket)) stop(.gone(), call. = FALSE)
  link <- new.env()
  link$socket <- socket
  link$buffer <- raw()
  link$position <- 0L
  link$quiet <- TRUE # whether an interrupt has to wait until there is an answer
  link$late <- FALSE # whether one has come meanwhile
  .send(link, .string(backend$secret))
  if (!identical(.take_string(link, Sys.time() + 30), "ok")) stop("Spark's JVM does not know this kernel", call. = FALSE)
  link
}

.close <- function(link) if (!is.null(link)) try(close(link$socket), silent = TRUE)

# Returns whether an interrupt came meanwhile. It comes before anything of a piece is sent, in the select that R waits in until
# there is room: a piece is small enough to go at once.
.send <- function(link, bytes) {
  interrupted <- FALSE
  for (start in seq.int(1L, length(bytes), .piece)) {
    piece <- bytes[start:min(start + .piece - 1L, length(bytes))]
    repeat {
      sent <- tryCatch({
        writeBin(piece, link$socket)
        TRUE
      }, interrupt = function(condition) FALSE)
      if (sent) break
      interrupted <- TRUE
    }
  }
  interrupted
}

# The command that prints this kernel's log, where its gateway runs.
.log_command <- function() paste0("`jupyter distributed logs ", Sys.getenv("KERNEL_ID", "KERNEL"), "`")

.gone <- function() {
  reason <- backend$ended()
  host <- Sys.info()[["nodename"]]
  if (startsWith(reason, paste0(host, ": "))) return(paste0(reason, "; restart the kernel for a new session"))
  if (!nzchar(reason)) reason <- "Spark's JVM does not answer"
  paste0(host, ": ", reason, "; see the kernel's log (", .log_command(), "), and restart the kernel for a new session")
}

# Wait until *link* can be read; returns FALSE when *deadline* has passed.
.wait <- function(link, deadline) {
  repeat {
    left <- if (is.null(deadline)) 1 else as.numeric(difftime(deadline, Sys.time(), units = "secs"))
    if (left <= 0) return(FALSE)
    # A select is interrupted even where interrupts are suspended; nothing has been read then, and it is begun again.
    look <- function() allowInterrupts(socketSelect(list(link$socket), FALSE, min(left, 1)))
    later <- function(condition) {
      link$late <- TRUE
      FALSE
    }
    if (if (link$quiet) tryCatch(look(), interrupt = later) else look()) return(TRUE)
    if (!link$quiet) {
      backend$news()
      .look_for_tasks(link)
    }
  }
}

# Return the next *count* bytes.
.take <- function(link, count, deadline = NULL) {
  force(count) # it may be an integer that is read from the same link
  while (length(link$buffer) - link$position < count) {
    if (!.wait(link, deadline)) stop(.timed_out)
    chunk <- readBin(link$socket, "raw", .chunk)
    if (!length(chunk)) stop(.gone(), call. = FALSE) # readable, and nothing there: the other side has closed it
    rest <- length(link$buffer) - link$position
    link$buffer <- c(if (rest) link$buffer[link$position + seq_len(rest)], chunk)
    link$position <- 0L
  }
  bytes <- link$buffer[link$position + seq_len(count)]
  link$position <- link$position + as.integer(count)
  bytes
}

.timed_out <- structure(class = c("spark_timeout", "error", "condition"), list(message = "no answer in time", call = NULL))

# -- objects in the JVM --------------------------------------------------------------------------------------------------------

.jobj <- function(id) {
  object <- structure(list2env(list(id = id)), class = "jobj")
  reg.finalizer(object, function(gone) backend$garbage <- c(backend$garbage, gone$id))
  object
}

# Any method of an object: spark$range(10)$count()
`$.jobj` <- function(x, name) {
  if (name == "id") return(get("id", envir = x, inherits = FALSE))
  force(x)
  shown <- .shown[[name]]
  original <- function(...) sparkR.callJMethod(x, name, ...)
  # Another object than a Dataset may have such a method as well.
  if (is.null(shown)) original else function(...) tryCatch(shown(x, ...), spark_unmatched = function(e) original(...))
}

print.jobj <- function(x, ...) {
  cat(sparkR.callJMethod(x, "toString"), "\n", sep = "")
  invisible(x)
}

# -- calls ---------------------------------------------------------------------------------------------------------------------

.request <- function(static, object, method, arguments) {
  body <- c(.int(static), .string(object), .string(method), .int(length(arguments)), unlist(lapply(arguments, .typed)))
  c(.int(length(body)), body)
}

# Return list(status, value or error text) of the answer that comes next over *link*.
.answer <- function(link, deadline = NULL) {
  repeat {
    status <- .take_int(link, deadline)
    if (status != 1L) break # 1 says only that the call goes on
  }
  list(status = status, value = if (status < 0L) .take_string(link, deadline) else .take_value(link, deadline))
}

# One call and its answer. Raises the interrupt that came meanwhile, once the connection is fit for the next call.
.call <- function(static, object, method, arguments) {
  force(object) # an argument may be a call itself, which must be over before this one begins
  force(arguments)
  suspendInterrupts({
    if (is.null(backend$main)) {
      backend$main <- .open()
      .settle()
    }
    .collect_garbage()
    link <- backend$main
    request <- .request(static, object, method, arguments)
    # Whatever ends this before the answer is read: the connection goes, or the next call would take it for its own.
    whole <- FALSE
    on.exit(if (!whole) .give_up(link))
    outcome <- if (.send(link, request)) .interrupt else tryCatch(.await(link), interrupt = function(condition) condition)
    link$quiet <- TRUE
    if (inherits(outcome, "interrupt")) {
      whole <- .cancelled(link)
      stop(outcome) # for IRkernel's handler of interrupts, or the user's own
    }
    answer <- .answer(link)
    whole <- TRUE
  })
  backend$failure <- if (answer$status >= 0L) "" else answer$value
  if (answer$status >= 0L) return(answer$value)
  if (nzchar(answer$value)) stop(.shortened(answer$value), call. = FALSE)
  kinds <- vapply(arguments, function(value) class(value)[[1]], "")
  called <- paste0(if (static) paste0(object, "."), method, "(", paste(kinds, collapse = ", "), ")")
  text <- paste0("there is no ", called, "; see the kernel's log (", .log_command(), ")")
  stop(structure(class = c("spark_unmatched", "error", "condition"), list(message = text, call = NULL)))
}

.interrupt <- structure(class = c("interrupt", "condition"), list(message = "", call = NULL))

# Wait for an answer, and leave it where it is.
.await <- function(link) {
  link$quiet <- FALSE
  link$began <- link$moved <- Sys.time()
  link$completed <- 0L
  link$stuck <- FALSE # whether it has been said
  while (.peek_status(link) == 1L) .take(link, 4L)
}

.peek_status <- function(link) {
  bytes <- .take(link, 4L)
  link$position <- link$position - 4L
  readBin(bytes, "integer", endian = "big")
}

# After an interrupt: cancel the jobs, and return whether the call's answer has been read to its end.
.cancelled <- function(link) {
  .cancel()
  # Without a session there is nothing that would make the call end soon.
  if (is.null(backend$context)) return(FALSE)
  deadline <- Sys.time() + .grace
  # Jobs that the call begins only now are its as well: a plan that was being made, a loop in the JVM.
  while (length(link$buffer) == link$position && !.wait(link, min(deadline, Sys.time() + .again))) {
    if (Sys.time() >= deadline) return(FALSE)
    .cancel()
  }
  tryCatch({
    .answer(link, deadline)
    TRUE
  }, spark_timeout = function(late) FALSE)
}

# The call goes on in the JVM; later ones go over a new connection.
.give_up <- function(link) {
  .close(link)
  backend$main <- NULL
}

.cancel <- function() {
  if (is.null(backend$context) || is.null(backend$control)) return(invisible())
  tryCatch({
    .send(backend$control, .request(FALSE, backend$context$id, "cancelAllJobs", list()))
    .answer(backend$control, Sys.time() + .grace)
  }, error = function(e) {
    .close(backend$control)
    backend$control <- tryCatch(.open(), error = function(e) NULL)
  }, interrupt = function(again) NULL)
  invisible()
}

# Tasks of cancelled jobs are interrupted, too: a property of the JVM's thread, which each connection keeps one of.
# While a call over *link* goes on: say, once, that none of its tasks gets an executor. Asked over the connection that cancels; an
# interrupt that comes meanwhile is the call's.
.look_for_tasks <- function(link) {
  now <- Sys.time()
  if (is.null(backend$context) || is.null(backend$control)) return()
  if (difftime(now, link$began, units = "secs") < .first_look) return()
  tryCatch({
    tracker <- .aside(backend$context, "statusTracker")
    stages <- unlist(.aside(tracker, "getActiveStageIds"))
    busy <- FALSE
    completed <- 0L
    for (id in stages) {
      stage <- .aside(.aside(tracker, "getStageInfo", as.integer(id)), "get")
      busy <- busy || .aside(stage, "numActiveTasks") > 0L
      completed <- completed + .aside(stage, "numCompletedTasks")
    }
    if (busy || !length(stages) || completed != link$completed) {
      link$moved <- now
      link$completed <- completed
      link$stuck <- FALSE
    } else if (!link$stuck && difftime(now, link$moved, units = "secs") > .idle) {
      link$stuck <- TRUE
      .tell_stuck()
    }
  }, error = function(e) NULL) # a stage or a context that has ended meanwhile
  if (backend$control$late) {
    backend$control$late <- FALSE
    stop(.interrupt)
  }
}

.tell_stuck <- function() {
  ever <- FALSE
  reasons <- character()
  conf <- .aside(backend$context, "getConf")
  driver <- vapply(c("spark.driver.host", "spark.driver.port"), function(name) .aside(conf, "get", name, ""), "")
  tryCatch({
    executors <- .aside(.aside(backend$context, "statusStore"), "executorList", FALSE)
    for (i in seq_len(.aside(executors, "size")) - 1L) {
      executor <- .aside(executors, "apply", i)
      ever <- ever || .aside(executor, "id") != "driver"
      reason <- .aside(.aside(executor, "removeReason"), "toString")
      if (startsWith(reason, "Some(")) reasons <- c(reasons, substr(reason, 6L, nchar(reason) - 1L))
    }
  }, error = function(e) ever <<- TRUE) # not this release's: the words that hold of any
  backend$stuck(ever, paste(driver, collapse = ":"), reasons)
}

# A call beside the one that goes on.
.aside <- function(object, method, ...) {
  link <- backend$control
  if (.send(link, .request(FALSE, object$id, method, list(...)))) link$late <- TRUE
  answer <- .answer(link, Sys.time() + .grace)
  if (answer$status < 0L) stop(answer$value, call. = FALSE)
  answer$value
}

.settle <- function() {
  if (is.null(backend$context)) return()
  pair <- list("spark.job.interruptOnCancel", "true")
  .send(backend$main, .request(FALSE, backend$context$id, "setLocalProperty", pair))
  .answer(backend$main, Sys.time() + 30)
}

.collect_garbage <- function() {
  garbage <- backend$garbage
  backend$garbage <- character()
  for (id in garbage) {
    .send(backend$main, .request(TRUE, "SparkRHandler", "rm", list(id)))
    .answer(backend$main, Sys.time() + 30)
  }
}

# A Java stack trace, down to what a cell should show.
.shortened <- function(text) {
  lines <- strsplit(text, "\n", fixed = TRUE)[[1]]
  kept <- lines[!grepl("^\\s+(at |\\.\\.\\. )", lines) & nzchar(lines)]
  paste(utils::head(kept, .max_error_lines), collapse = "\n")
}

# -- what notebooks use: SparkR's names for the same things --------------------------------------------------------------------

sparkR.callJMethod <- function(x, methodName, ...) .matched(FALSE, x$id, methodName, list(...))
sparkR.callJStatic <- function(x, methodName, ...) .matched(TRUE, x, methodName, list(...))
sparkR.newJObject <- function(x, ...) .matched(TRUE, x, "<init>", list(...))

# The JVM takes a Java long from an R integer alone, and says nothing but that it failed: 1000 is tried as 1000L, too.
.matched <- function(static, object, method, arguments) {
  tryCatch(.call(static, object, method, arguments), spark_unmatched = function(condition) {
    whole <- vapply(arguments, function(value) {
      is.numeric(value) && length(value) == 1L && !is.na(value) && value == trunc(value) && abs(value) <= .Machine$integer.max
    }, NA)
    if (!any(whole & vapply(arguments, is.double, NA))) stop(condition)
    arguments[whole] <- lapply(arguments[whole], as.integer)
    .call(static, object, method, arguments)
  })
}
