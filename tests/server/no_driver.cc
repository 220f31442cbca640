// Empty: the server asks only whether there is a driver.
