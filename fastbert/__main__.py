from fastbert.cli.app import app

app(prog_name="fastbert")
