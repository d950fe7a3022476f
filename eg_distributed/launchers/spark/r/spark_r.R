# The R kernel of Spark: IRkernel in this process, and a session in the JVM that backend.py keeps beside it.
# Run by command.py: Rscript spark_r.R CONNECTION_FILE, with EG_R_SESSION (sparkr, sparklyr, builtin or empty) and EG_R_MODE set.

suspendInterrupts(local({
  arguments <- commandArgs(FALSE)
  here <- dirname(sub("^--file=", "", grep("^--file=", arguments, value = TRUE)[[1]]))
  folder <- dirname(here) # the launcher's, where backend.py and the JVM have their files
  host <- Sys.info()[["nodename"]]
  give_up <- function(cause, remedy) {
    message(host, ": ", cause, "; ", remedy)
    quit("no", 1L)
  }

  log_command <- function() paste0("`jupyter distributed logs ", Sys.getenv("KERNEL_ID", "KERNEL"), "`")

  # -- the JVM -----------------------------------------------------------------------------------------------------------------

  # Why there is no JVM any more; "" while there is one.
  jvm_ended <- function() {
    path <- file.path(folder, "rbackend.ended")
    if (file.exists(path)) paste(readLines(path, warn = FALSE), collapse = "\n") else ""
  }

  # Wait for the JVM that was started beside this process, and learn where it listens.
  jvm_ready <- function(backend, limit = 60) {
    path <- file.path(folder, "rbackend")
    deadline <- Sys.time() + limit
    while (!file.exists(path)) {
      reason <- jvm_ended()
      if (startsWith(reason, paste0(host, ": "))) stop(reason, "; then restart the kernel", call. = FALSE)
      if (nzchar(reason)) stop(host, ": ", reason, "; correct the kernelspec's options, and restart the kernel", call. = FALSE)
      if (Sys.time() > deadline) {
        stop(host, ": Spark's JVM has not started within ", limit, " s; see the kernel's log (", log_command(), ")", call. = FALSE)
      }
      Sys.sleep(0.05)
    }
    said <- file(path, "rb")
    on.exit(close(said))
    read_int <- function() readBin(said, "integer", endian = "big")
    backend$port <- read_int()
    read_int() # where backend.py is connected
    readBin(said, "raw", read_int())
    read_int()
    backend$secret <- rawToChar(readBin(said, "raw", read_int()))
    Sys.setenv(EXISTING_SPARKR_BACKEND_PORT = backend$port, SPARKR_BACKEND_AUTH_SECRET = backend$secret)
  }

  # Ask backend.py, and return its answer; "" if there is none within *limit* seconds.
  keepers_answer <- function(..., limit = 15) {
    number <- format(as.numeric(Sys.time()), digits = 16)
    question <- file.path(folder, "rbackend.asked")
    writeLines(c(number, ...), paste0(question, ".new"), useBytes = TRUE)
    file.rename(paste0(question, ".new"), question)
    deadline <- Sys.time() + limit
    path <- file.path(folder, "rbackend.answer")
    while (Sys.time() < deadline && !nzchar(jvm_ended())) {
      said <- if (file.exists(path)) readLines(path, warn = FALSE) else ""
      if (identical(said[1], number)) return(paste(said[-1], collapse = "\n"))
      Sys.sleep(0.02)
    }
    ""
  }
  # Whether the cluster can be reached: known within seconds, where Spark would say so after a minute.
  ask_for_session <- function() {
    refusal <- keepers_answer()
    if (nzchar(refusal)) stop(refusal, call. = FALSE)
  }
  # Spark's own words for why there is no session, with host, cause and remedy.
  explained <- function(text) {
    told <- if (nzchar(jvm_ended())) "" else keepers_answer(text)
    if (nzchar(told)) told else text
  }
  # Say why no task runs, in the same words as in a Python kernel.
  tell_stuck <- function(ever, driver, reasons) {
    on.exit(unlink(file.path(folder, "rbackend.asked")))
    told <- keepers_answer("stuck", if (ever) "true" else "false", driver, gsub("\\s+", " ", reasons))
    if (nzchar(told)) message(told)
  }
  # The fault of the installation behind the error that a cell ended with, in the words of a Python kernel; "" for any other.
  # Asked of a process of its own: with sparklyr, and in mode none, there is no backend.py.
  advice <- function(outcome) {
    errors <- Filter(function(part) inherits(part, "error"), outcome)
    if (!length(errors)) return("")
    said <- conditionMessage(errors[[1]])
    if (startsWith(said, paste0(host, ": "))) return("") # ours, with its remedy
    text <- paste(c(said, client$backend$failure), collapse = "\n")
    if (!grepl("spark|java", text, ignore.case = TRUE, useBytes = TRUE)) return("")
    told <- tryCatch(
      system2(Sys.getenv("EG_SPARK_PYTHON"), c(shQuote(Sys.getenv("EG_SPARK_TELL")), "advise"), input = text, stdout = TRUE, timeout = 10),
      error = function(e) character(), warning = function(e) character()
    )
    paste(told, collapse = "\n")
  }
  told <- 0L
  tell_news <- function() {
    path <- file.path(folder, "rbackend.news")
    lines <- if (file.exists(path)) readLines(path, warn = FALSE) else character()
    for (line in lines[seq_along(lines) > told]) message(line)
    told <<- length(lines)
  }

  # -- the session, in one of three ways ---------------------------------------------------------------------------------------

  client <- new.env(parent = globalenv())
  for (name in c("rbackend_wire.R", "rbackend.R", "session.R")) sys.source(file.path(here, name), client)
  client$backend$ended <- jvm_ended
  client$backend$start <- function() if (is.null(client$backend$port)) jvm_ready(client$backend)
  client$backend$ask <- ask_for_session
  client$backend$explain <- explained
  client$backend$asked <- function() unlink(file.path(folder, "rbackend.asked"))
  client$backend$news <- tell_news
  client$backend$stuck <- tell_stuck
  given <- strsplit(Sys.getenv("EG_R_CONF"), "\n", fixed = TRUE)[[1]]
  client$backend$given <- as.list(stats::setNames(sub("^[^=]*=", "", given), sub("=.*", "", given)))
  client$backend$worker_r <- Sys.getenv("EG_R_WORKER", "Rscript")
  client$backend$announce <- function(context) {
    address <- client$sparkR.callJMethod(client$sparkR.callJMethod(context, "uiWebUrl"), "toString")
    if (startsWith(address, "Some(")) message("Spark UI: ", substr(address, 6L, nchar(address) - 1L))
  }

  mode <- Sys.getenv("EG_R_MODE", "lazy")
  wanted <- Sys.getenv("EG_R_SESSION")
  if (!nzchar(wanted)) wanted <- if (requireNamespace("SparkR", quietly = TRUE)) "sparkr" else "builtin"

  # In an environment of its own behind the user's: rm(list = ls()) leaves it there, and whatever he calls the same hides it.
  offered <- attach(NULL, name = "eg_distributed:spark")
  if (mode != "none") {
    if (wanted == "builtin") {
      for (name in grep("^backend$|jobj$", ls(client), value = TRUE, invert = TRUE)) assign(name, get(name, client), offered)
      lockEnvironment(client)
      for (name in c("$.jobj", "print.jobj", "head.jobj")) {
        registerS3method(sub(".jobj", "", name, fixed = TRUE), "jobj", get(name, client, inherits = FALSE))
      }
      session <- client$.session
      context <- client$.java_context
    } else {
      sys.source(file.path(here, "packages.R"), environment())
      made <- if (wanted == "sparkr") with_sparkr(client) else with_sparklyr()
      session <- made$session
      context <- made$context
    }
    makeActiveBinding("spark", function() session(), offered)
    makeActiveBinding("sc", function() context(), offered)
    makeActiveBinding("sqlContext", function() session(), offered)
  }

  # -- the kernel --------------------------------------------------------------------------------------------------------------

  if (!requireNamespace("IRkernel", quietly = TRUE)) {
    give_up(
      paste0("R at ", R.home(), " has no package IRkernel"),
      "install it there (Debian: r-cran-irkernel), or name another R by --conf spark.r.driver.command in SPARK_OPTS"
    )
  }
  # Interrupts reach the user's code and nothing else: one that comes while the kernel is idle, or between two of its messages,
  # would end it, or tear a message apart.
  parts <- parent.env(asNamespace("IRkernel"))
  replace <- function(name, with) {
    if (!exists(name, parts, inherits = FALSE)) return()
    original <- get(name, parts)
    unlockBinding(name, parts)
    assign(name, with(original), parts)
    lockBinding(name, parts)
  }
  replace("evaluate", function(evaluate) {
    force(evaluate)
    function(...) {
      tryCatch(allowInterrupts(Sys.sleep(0)), interrupt = function(stale) NULL)
      client$backend$failure <- ""
      outcome <- allowInterrupts(evaluate(...))
      said <- tryCatch(advice(outcome), error = function(e) "") # then the cell has Spark's own words alone
      if (nzchar(said)) list(...)$output_handler$message(simpleMessage(paste0(said, "\n"))) # below the error
      outcome
    }
  })
  replace("zmq.send.multipart", function(send) {
    force(send)
    function(...) suspendInterrupts(send(...))
  })

  if (mode == "eager") {
    tryCatch(session(), error = function(e) give_up(conditionMessage(e), "or start sessions lazily, to see this in a cell"))
  }
  IRkernel::main(commandArgs(TRUE)[[1]])
}))
