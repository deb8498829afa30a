from stpred.cli import main

main()
